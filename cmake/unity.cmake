option(MOBA_UNITY "Compile each folder as one file: a cold build takes half the time, a change of one file a little longer" ON)

# moba_unity(target): nearly half of the time of a file that includes torch is the same for all of them, so each folder of the
# target is compiled as one. Names in anonymous namespaces must therefore differ within a folder.
function(moba_unity target)
  if(NOT MOBA_UNITY)
    return()
  endif()
  get_target_property(_sources ${target} SOURCES)
  foreach(_source ${_sources})
    get_filename_component(_folder ${_source} DIRECTORY)
    file(RELATIVE_PATH _folder ${CMAKE_CURRENT_SOURCE_DIR} ${_folder})
    string(MAKE_C_IDENTIFIER "${target}_${_folder}" _group)
    set_source_files_properties(${_source} PROPERTIES UNITY_GROUP ${_group})
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()
