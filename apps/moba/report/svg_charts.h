// The two pictures of the needle page as inline SVG. Colours that change between light and dark come from the page.
#pragma once

#include <string>
#include <string_view>

#include "report/needle_report.h"

namespace moba::app {

/// Length across, depth down, "4/5" in each cell.
std::string heat_map_svg(const NeedleReport& report, const std::string& attention);

/// Seconds to read a prompt against its length, both on logarithmic axes, one line for each attention; where full
/// attention ran too, the ratio beside each length.
std::string speed_svg(const NeedleReport& report);

/// & < > " as entities.
std::string escape_html(std::string_view text);

}  // namespace moba::app
