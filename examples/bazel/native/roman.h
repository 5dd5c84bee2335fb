#ifndef NATIVE_ROMAN_H_
#define NATIVE_ROMAN_H_

#include <string>

// Returns the Roman numeral of `number`, which is to be between 1 and 3999; outside of that
// there is none and the result is empty.
std::string ToRoman(int number);

#endif  // NATIVE_ROMAN_H_
