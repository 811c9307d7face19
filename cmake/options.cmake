option(TIMBRE_TESTS "Build the tests" ON)
option(TIMBRE_FUZZ "Build the fuzz targets (clang)" OFF)
# What computes, without what serves: for a machine with a GPU and little else. See tests/gpu.sh.
option(TIMBRE_CORE "Build base, kernels and models only, their tests and programs that need no more" OFF)
option(TIMBRE_WERROR "Warnings are errors" ON)
set(TIMBRE_TESTS_ROOT "${PROJECT_SOURCE_DIR}" CACHE STRING
  "Where the tests find the source tree; \".\" for tests that are carried elsewhere and run in its root")
set(TIMBRE_SANITIZE "" CACHE STRING "Sanitizers, such as address,undefined or thread")

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# Release keeps asserts: they guard against bugs, and none stands in a hot loop.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1")

# nvcc has options of its own, and hands code of its own making to the host compiler.
set(host_languages $<COMPILE_LANGUAGE:C,CXX,ASM>)
add_compile_options("$<${host_languages}:-Wall;-Wextra;-Wpedantic;-fvisibility=hidden;-fno-strict-aliasing>")
if(TIMBRE_WERROR)
  add_compile_options("$<${host_languages}:-Werror>")
endif()
add_compile_definitions(_GNU_SOURCE)
include_directories(${PROJECT_SOURCE_DIR})
# One rounding for every multiplication and every addition unless the code says fma: bits must not depend on what a
# compiler contracts.
add_compile_options("$<${host_languages}:-ffp-contract=off>")

# gRPC's pkg-config names every library it is made of; the programs need two of them.
add_link_options(-Wl,--as-needed)

if(TIMBRE_SANITIZE)
  add_compile_options(-fsanitize=${TIMBRE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TIMBRE_SANITIZE})
endif()
if(TIMBRE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
