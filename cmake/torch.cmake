# Imported target moba::libtorch from the PyPI wheel of torch: libtorch_cpu and c10 only. Kernels for CUDA are loaded at
# run time (libtorch_cuda.so registers itself), so that a machine without a GPU needs three wheels and not twenty.
# find_package(Torch) of a CUDA wheel wants a CUDA compiler, hence a target by hand.
if(NOT MOBA_TORCH_ROOT)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  file(GLOB _moba_torch_candidates ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  list(POP_FRONT _moba_torch_candidates _moba_torch_root)
  set(MOBA_TORCH_ROOT "${_moba_torch_root}" CACHE PATH "" FORCE)
endif()
if(NOT EXISTS ${MOBA_TORCH_ROOT}/include/torch/csrc/api/include/torch/torch.h)
  message(FATAL_ERROR "torch was not found at MOBA_TORCH_ROOT='${MOBA_TORCH_ROOT}'. Run `make deps`, or set MOBA_TORCH_ROOT to "
    "the folder of an installed torch 2.11 (python -c 'import torch; print(torch.__path__[0])'), or build the core alone with -DMOBA_TORCH=OFF.")
endif()
file(GLOB _moba_cudart_dir ${MOBA_TORCH_ROOT}/../nvidia/cu13/lib)

add_library(moba_libtorch INTERFACE)
add_library(moba::libtorch ALIAS moba_libtorch)
target_include_directories(moba_libtorch SYSTEM INTERFACE
  ${MOBA_TORCH_ROOT}/include ${MOBA_TORCH_ROOT}/include/torch/csrc/api/include)
# torch's include folder carries its own fmt, whose symbols libtorch does not export and the system's libfmt does not have:
# compile it in.
target_compile_definitions(moba_libtorch INTERFACE FMT_HEADER_ONLY)
target_link_directories(moba_libtorch INTERFACE ${MOBA_TORCH_ROOT}/lib)
target_link_libraries(moba_libtorch INTERFACE -Wl,--no-as-needed torch_cpu c10 -Wl,--as-needed)
target_link_options(moba_libtorch INTERFACE
  -Wl,-rpath,${MOBA_TORCH_ROOT}/lib -Wl,-rpath,${_moba_cudart_dir} -Wl,-rpath-link,${MOBA_TORCH_ROOT}/lib -Wl,-rpath-link,${_moba_cudart_dir})

# at::parallel_for is a template that runs serially unless its caller is compiled with OpenMP; the library behind it must be
# the libgomp that torch itself loads (same soname, found in torch/lib first), so that torch.set_num_threads governs.
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  set(_moba_openmp -fopenmp=libgomp)
else()
  set(_moba_openmp -fopenmp)
endif()
target_compile_options(moba_libtorch INTERFACE ${_moba_openmp})
target_link_options(moba_libtorch INTERFACE ${_moba_openmp})

# One precompiled header for every file that includes torch (20 s a file without it).
file(WRITE ${CMAKE_BINARY_DIR}/torch_pch.cpp "// Holds the precompiled header.\n")
add_library(moba_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cpp)
target_link_libraries(moba_torch_pch PRIVATE moba::libtorch)
target_precompile_headers(moba_torch_pch PRIVATE <torch/torch.h> <torch/library.h>)

# moba_use_torch_pch(target): compile with the shared precompiled header. It is built with -fPIC, so an executable must be too
# (CMake would give it -fPIE, and GCC refuses a header made with other settings).
function(moba_use_torch_pch target)
  target_precompile_headers(${target} REUSE_FROM moba_torch_pch)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${target} PRIVATE -fPIC)
endfunction()
