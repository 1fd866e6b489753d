// The style sheet of the benchmarks' pictures, for light and dark pages.
#pragma once

namespace moba::app {

inline constexpr const char* kBenchStyle =
    "svg { color-scheme: light dark; } text { font: 13px system-ui, sans-serif; fill: #191c20; } "
    ".back { fill: #ffffff; } .soft { fill: #5d6570; } .middle { text-anchor: middle; } .end { text-anchor: end; } "
    ".grid { stroke: #e3e4df; } .bar { fill: #0c7c86; } .goal { stroke: #c2621b; stroke-width: 2; } "
    ".line { fill: none !important; stroke-width: 2.5; } .ours { stroke: #0c7c86; fill: #0c7c86; } "
    ".dense { stroke: #c2621b; fill: #c2621b; } .portable { stroke: #8a8f98; fill: #8a8f98; }\n"
    "@media (prefers-color-scheme: dark) { text { fill: #eceef0; } .back { fill: #121417; } .soft { fill: #9aa3ad; } "
    ".grid { stroke: #2d3238; } .bar { fill: #46c2c6; } .goal { stroke: #f0995a; } "
    ".ours { stroke: #46c2c6; fill: #46c2c6; } .dense { stroke: #f0995a; fill: #f0995a; } }";

}  // namespace moba::app
