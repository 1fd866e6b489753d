#include "report/stroke_font.h"

namespace moba::app {
namespace {

constexpr Glyph kGlyphs[] = {
    {'0', 6, "2d0f0l2n4n6l6f4d2d"},
    {'1', 3, "0l3n3d"},
    {'2', 6, "0l2n4n6l6j0d6d"},
    {'3', 6, "0m1n4n6l6k4i2i 4i6g6f4d1d0e"},
    {'4', 6, "5d5n0g6g"},
    {'5', 6, "6n1n0i2j4j6h6f4d1d0e"},
    {'6', 6, "5n3n1l0i0f2d4d6f6h4j2j0h"},
    {'7', 6, "0n6n2d"},
    {'8', 6, "2i0k0l2n4n6l6k4i2i0g0f2d4d6f6g4i"},
    {'9', 6, "1d3d5f6i6l4n2n0l0j2h4h6j"},
    {'a', 5, "5k5d 5i3k2k0i0f2d3d5f"},
    {'b', 5, "0n0d 0i2k3k5i5f3d2d0f"},
    {'c', 5, "5j3k2k0i0f2d3d5e"},
    {'d', 5, "5n5d 5i3k2k0i0f2d3d5f"},
    {'e', 5, "0h5h5i3k2k0i0f2d3d5e"},
    {'f', 3, "3n2n1m1d 0k3k"},
    {'g', 5, "5k5c4a1a0b 5i3k2k0i0f2d3d5f"},
    {'h', 5, "0n0d 0i2k3k5i5d"},
    {'i', 0, "0k0d 0n0n"},
    {'j', 1, "1k1b0a 1n1n"},
    {'k', 4, "0n0d 4k0g 1h4d"},
    {'l', 0, "0n0d"},
    {'m', 8, "0k0d 0i2k3k4i4d 4i6k7k8i8d"},
    {'n', 5, "0k0d 0i2k3k5i5d"},
    {'o', 5, "2k0i0f2d3d5f5i3k2k"},
    {'p', 5, "0k0a 0i2k3k5i5f3d2d0f"},
    {'q', 5, "5k5a 5i3k2k0i0f2d3d5f"},
    {'r', 3, "0k0d 0i2k3k"},
    {'s', 4, "4j3k1k0j0i4g4e3d1d0e"},
    {'t', 3, "1n1e2d3d 0k3k"},
    {'u', 5, "0k0f2d3d5f 5k5d"},
    {'v', 4, "0k2d4k"},
    {'w', 8, "0k2d4j6d8k"},
    {'x', 4, "0k4d 4k0d"},
    {'y', 4, "0k2d 4k1a0a"},
    {'z', 4, "0k4k0d4d"},
    {'A', 6, "0d3n6d 1g5g"},
    {'B', 6, "0i0n4n5m5j4i0i0d4d6f6g4i"},
    {'C', 6, "6l4n2n0l0f2d4d6f"},
    {'D', 6, "0d0n3n6k6g3d0d"},
    {'E', 5, "5n0n0d5d 0i4i"},
    {'F', 5, "5n0n0d 0i4i"},
    {'G', 6, "6l4n2n0l0f2d4d6f6h4h"},
    {'H', 6, "0n0d 6n6d 0i6i"},
    {'I', 0, "0n0d"},
    {'J', 4, "4n4f3d1d0f"},
    {'K', 5, "0n0d 5n0h 2i5d"},
    {'L', 5, "0n0d5d"},
    {'M', 8, "0d0n4f8n8d"},
    {'N', 6, "0d0n6d6n"},
    {'O', 6, "2n0l0f2d4d6f6l4n2n"},
    {'P', 6, "0d0n4n6l6j4h0h"},
    {'Q', 6, "2n0l0f2d4d6f6l4n2n 4f6d"},
    {'R', 6, "0d0n4n6l6j4h0h 3h6d"},
    {'S', 6, "6l4n2n0l0k2i4i6g6f4d2d0f"},
    {'T', 6, "0n6n 3n3d"},
    {'U', 6, "0n0f2d4d6f6n"},
    {'V', 6, "0n3d6n"},
    {'W', 8, "0n2d4m6d8n"},
    {'X', 6, "0n6d 6n0d"},
    {'Y', 6, "0n3i6n 3i3d"},
    {'Z', 6, "0n6n0d6d"},
    {'.', 0, "0d0d"},
    {',', 1, "1d0b"},
    {':', 0, "0d0d 0j0j"},
    {';', 1, "1d0b 1j1j"},
    {'!', 0, "0n0g 0d0d"},
    {'?', 4, "0m1n3n4m4k2i2g 2d2d"},
    {'/', 4, "0d4n"},
    {'%', 7, "0d7n 1n0m0l1k2l2m1n 6g5f5e6d7e7f6g"},
    {'-', 4, "0h4h"},
    {'+', 4, "0h4h 2j2f"},
    {'=', 4, "0i4i 0g4g"},
    {'_', 5, "0c5c"},
    {'(', 2, "2n0k0f2b"},
    {')', 2, "0n2k2f0b"},
    {'\'', 0, "0n0l"},
    {'"', 2, "0n0l 2n2l"},
};
constexpr Glyph kUnknown = {'\0', 5, "0d0n5n5d0d"};

}  // namespace

const Glyph& glyph_of(char character) {
  for (const Glyph& glyph : kGlyphs) {
    if (glyph.character == character) return glyph;
  }
  return kUnknown;
}

}  // namespace moba::app
