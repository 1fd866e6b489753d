# Compile through ccache where it is installed.
find_program(MOBA_CCACHE ccache)
if(MOBA_CCACHE)
  # Precompiled headers are cached only with these two (ccache manual, "Precompiled headers").
  set(MOBA_CCACHE_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${MOBA_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MOBA_CCACHE_LAUNCHER})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endif()
