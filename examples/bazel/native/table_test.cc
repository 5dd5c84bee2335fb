#include <fstream>
#include <iostream>

#include "native/roman.h"

int main(int count, char** arguments) {
  if (count != 2) return 2;
  std::ifstream table(arguments[1]);
  int number = 0;
  int rows = 0;
  std::string expected;
  while (table >> number >> expected) {
    ++rows;
    if (ToRoman(number) == expected) continue;
    std::cerr << number << " is not " << expected << "\n";
    return 1;
  }
  std::cout << rows << " rows of the table hold\n";
  return rows == 5 ? 0 : 1;
}
