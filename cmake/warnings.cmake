# moba_warnings(target): the warnings every target of this project is built with.
function(moba_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wno-unknown-pragmas)
  if(MOBA_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
