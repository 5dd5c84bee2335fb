#include <cstdlib>
#include <iostream>

#include "native/roman.h"

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string roman = ToRoman(std::atoi(arguments[i]));
    if (roman.empty()) {
      std::cerr << "no Roman numeral for " << arguments[i] << "\n";
      return 1;
    }
    std::cout << roman << "\n";
  }
  return 0;
}
