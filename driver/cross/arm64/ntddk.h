/* mingw-w64's ntddk.h knows no Arm64 either, and wants nothing from an Arm but the name: see wdm.h beside this file. */
#ifndef DOWNLINK_CROSS_ARM64_NTDDK_H
#define DOWNLINK_CROSS_ARM64_NTDDK_H

/* As ntddk.h does it before it includes wdm.h, which thereby knows that it is not alone. */
#define _NTDDK_
#include "wdm.h"

#define _M_ARM 7
#include_next <ntddk.h>
#undef _M_ARM

#endif
