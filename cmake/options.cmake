option(TIMBRE_TESTS "Build the tests" ON)
option(TIMBRE_FUZZ "Build the fuzz targets (clang)" OFF)
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

add_compile_options(-Wall -Wextra -Wpedantic -Werror -fvisibility=hidden -fno-strict-aliasing)
add_compile_definitions(_GNU_SOURCE)
include_directories(${PROJECT_SOURCE_DIR})
# One rounding for every multiplication and every addition unless the code says fma: bits must not depend on what a
# compiler contracts.
add_compile_options(-ffp-contract=off)

# gRPC's pkg-config names every library it is made of; the programs need two of them.
add_link_options(-Wl,--as-needed)

if(TIMBRE_SANITIZE)
  add_compile_options(-fsanitize=${TIMBRE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TIMBRE_SANITIZE})
endif()
if(TIMBRE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
