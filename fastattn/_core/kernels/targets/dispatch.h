/* The targets by name: a new one adds a line to each list here and in dispatch.c. */
#ifndef FA_DISPATCH_H
#define FA_DISPATCH_H

#include "abi/table.h"

extern const fa_target fa_target_portable, fa_target_avx2, fa_target_avx512, fa_target_avx512_bf16, fa_target_amx;
int fa_supported_portable(void);
int fa_supported_avx2(void);
int fa_supported_avx512(void);
int fa_supported_avx512_bf16(void);
int fa_supported_amx(void);

#endif
