#include "native/roman.h"

namespace {

struct Numeral {
  int value;
  const char* letters;
};

constexpr Numeral kNumerals[] = {
    {1000, "M"}, {900, "CM"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
    {40, "XL"},  {10, "X"},   {9, "IX"},  {5, "V"},    {4, "IV"},  {1, "I"},
};

}  // namespace

std::string ToRoman(int number) {
  std::string roman;
  if (number < 1 || number > 3999) return roman;
  for (const Numeral& numeral : kNumerals) {
    for (; number >= numeral.value; number -= numeral.value) roman += numeral.letters;
  }
  return roman;
}
