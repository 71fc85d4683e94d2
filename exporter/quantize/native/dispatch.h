// Chooses the variant for this processor; compiled without the instructions of any variant.

#pragma once

#if defined(__x86_64__) || defined(__i386__)
static bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif

extern "C" const char *decant_kquants_variant() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    return has_avx512() ? "avx512" : has_avx2() ? "avx2" : "baseline";
#else
    return "baseline";
#endif
}
