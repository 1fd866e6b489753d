# Checked builds. MOBA_SANITIZE=address,undefined finds wrong memory and undefined behaviour, =thread races; a finding ends the
# program. MOBA_FUZZ adds the libFuzzer programs of tests/fuzz (clang only) and marks every branch for them.
set(MOBA_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread")
option(MOBA_FUZZ "Build the libFuzzer programs (clang)" OFF)

if(MOBA_SANITIZE)
  # float-cast-overflow and float-divide-by-zero stay off, as is usual: IEEE 754 defines both results that the code relies on.
  add_compile_options(-fsanitize=${MOBA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${MOBA_SANITIZE})
endif()
if(MOBA_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "MOBA_FUZZ needs clang, since libFuzzer is part of it; CMAKE_CXX_COMPILER is "
      "${CMAKE_CXX_COMPILER_ID}. Configure with -DCMAKE_CXX_COMPILER=clang++.")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
