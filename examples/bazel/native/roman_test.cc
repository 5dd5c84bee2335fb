#include "native/roman.h"

#include <iostream>

namespace {

bool Expect(int number, const std::string& expected) {
  const std::string actual = ToRoman(number);
  if (actual == expected) return true;
  std::cerr << number << " became '" << actual << "', not '" << expected << "'\n";
  return false;
}

}  // namespace

int main() {
  bool good = Expect(1, "I");
  good &= Expect(4, "IV");
  good &= Expect(1994, "MCMXCIV");
  good &= Expect(3999, "MMMCMXCIX");
  good &= Expect(0, "");
  good &= Expect(4000, "");
  return good ? 0 : 1;
}
