#include "lm/config/toml.h"

#include <gtest/gtest.h>

#include "train_support.h"

namespace moba::lm {
namespace {

using nlohmann::json;
using testing::error_of;

TEST(Toml, BecomesJson) {
  const json root =
      parse_toml("[a]\nb = 1\nc = 0.5\nd = [true, 'x']\n[[p]]\ns = 1_000\n[[p]]\ns = {t = 2}\n", "f.toml");
  EXPECT_EQ(root, json::parse(R"({"a": {"b": 1, "c": 0.5, "d": [true, "x"]}, "p": [{"s": 1000}, {"s": {"t": 2}}]})"));
}

TEST(Toml, BrokenFileNamesFileAndLine) {
  const std::string message = error_of([] { parse_toml("[a]\nb = \n", "f.toml"); });
  EXPECT_HAS(message, "f.toml");
  EXPECT_HAS(message, "line 2");
}

TEST(Toml, CharactersBeyondAsciiOutsideOfStringsAreNamed) {
  for (const char* text : {"a = 1\n\xC5\x85 = 1\n", "a = 1\nb = 2 \xC5\x85\n", "a = 1\n\xC5\x85"}) {
    EXPECT_HAS(error_of([&] { parse_toml(text, "f.toml"); }), "line 2") << text;
  }
}

TEST(Toml, RefusesDates) {
  EXPECT_HAS(error_of([] { parse_toml("a = 1979-05-27\n", "f.toml"); }), "dates");
}

TEST(Toml, MissingFileIsNamed) {
  EXPECT_HAS(error_of([] { read_toml("/nowhere/f.toml"); }), "/nowhere/f.toml");
}

TEST(Override, TypesAreToml) {
  json root = json::parse(R"({"a": {"b": 1}, "phase": [{"step": 0}, {"step": 5}]})");
  apply_override(root, "a.b=2.5");
  apply_override(root, "a.name=two-words/and.dots");
  apply_override(root, "a.quoted=\"with = and, marks\"");
  apply_override(root, "new.list=[1, 2]");
  apply_override(root, "new.flag=true");
  apply_override(root, "phase.1.step=7");
  apply_override(root, "phase.0.attention={kind = \"full\"}");
  EXPECT_EQ(root, json::parse(R"({"a": {"b": 2.5, "name": "two-words/and.dots", "quoted": "with = and, marks"},
      "new": {"list": [1, 2], "flag": true},
      "phase": [{"step": 0, "attention": {"kind": "full"}}, {"step": 7}]})"));
}

TEST(Override, MistakesAreNamed) {
  json root = json::parse(R"({"a": {"b": 1}, "phase": [{"step": 0}]})");
  for (const char* text : {"nonsense", "=1", "a..b=1", "a.b=[1,", "a.b=", "a.b.c=1", "phase.1.step=1", "phase.x.step=1",
                           "a.b='open", "a.b=1\nc=2"}) {
    const json before = root;
    EXPECT_HAS(error_of([&] { apply_override(root, text); }), text);
    EXPECT_EQ(root, before) << text;
  }
}

TEST(Override, InvalidUtf8IsRefused) {
  json root = json::object();
  const std::string message = error_of([&] { apply_override(root, "run=0\xde\xb5\xb7"); });
  EXPECT_HAS(message, "--set");
  EXPECT_HAS(message, "UTF-8");
  EXPECT_TRUE(root.empty());
}

}  // namespace
}  // namespace moba::lm
