// What this CPU can run. Asked of the library that runs everywhere, before another is loaded.

#define EXPORT extern "C" __attribute__((visibility("default")))

// Grows whenever a function's arguments change: a library built from older sources is not used.
EXPORT int interface_version() { return 1; }

EXPORT int has_avx2() {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

EXPORT int has_avx512bf16() {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}
