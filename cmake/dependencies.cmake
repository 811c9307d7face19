find_package(Threads REQUIRED)

# With TIMBRE_CORE these three are all there is to find, pkg-config itself may be missing, and TIMBRE_DEPS may name a
# folder that has them (scripts/gpu_pack.sh makes one).
set(TIMBRE_DEPS "${PROJECT_SOURCE_DIR}/build/gpu-deps" CACHE PATH "With TIMBRE_CORE: a folder with include and lib")

# Defines PkgConfig::<prefix> from a header and a library (or its file name); <prefix>_FOUND says whether both are there.
function(timbre_find_plain prefix header library)
  find_path(${prefix}_INCLUDE_DIR ${header} HINTS ${TIMBRE_DEPS}/include)
  find_library(${prefix}_LIBRARY NAMES ${library} ${ARGN} HINTS ${TIMBRE_DEPS}/lib)
  if(${prefix}_INCLUDE_DIR AND ${prefix}_LIBRARY)
    add_library(PkgConfig::${prefix} UNKNOWN IMPORTED GLOBAL)
    set_target_properties(PkgConfig::${prefix} PROPERTIES IMPORTED_LOCATION ${${prefix}_LIBRARY}
      INTERFACE_INCLUDE_DIRECTORIES ${${prefix}_INCLUDE_DIR})
    set(${prefix}_FOUND ON PARENT_SCOPE)
  endif()
endfunction()

if(TIMBRE_CORE)
  timbre_find_plain(CJSON cjson/cJSON.h cjson libcjson.so.1)
  timbre_find_plain(CRYPTO openssl/evp.h crypto libcrypto.so.3)
  timbre_find_plain(CMOCKA cmocka.h cmocka libcmocka.so.0)
  if(NOT CJSON_FOUND OR NOT CRYPTO_FOUND)
    message(FATAL_ERROR "TIMBRE_CORE needs cJSON and libcrypto with their headers: install them, or carry "
                        "build/gpu-deps here, which scripts/gpu_pack.sh makes")
  endif()
  if(TIMBRE_TESTS AND NOT CMOCKA_FOUND)
    message(FATAL_ERROR "the tests need cmocka: as above, or TIMBRE_TESTS=OFF")
  endif()
  return()
endif()

find_package(PkgConfig REQUIRED)
pkg_check_modules(CJSON REQUIRED IMPORTED_TARGET libcjson)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto)
pkg_check_modules(SNDFILE REQUIRED IMPORTED_TARGET sndfile)
pkg_check_modules(SOXR REQUIRED IMPORTED_TARGET soxr)
pkg_check_modules(SECCOMP REQUIRED IMPORTED_TARGET libseccomp)
pkg_check_modules(GRPC REQUIRED IMPORTED_TARGET grpc)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(LIBWEBSOCKETS REQUIRED IMPORTED_TARGET libwebsockets)
if(TIMBRE_TESTS)
  pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
endif()
