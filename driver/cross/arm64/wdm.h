/*
 * mingw-w64's wdm.h knows no Arm64. This wrapper, found first in builds for Arm64, lets it take its path for an Arm,
 * whose processor-specific part is armddk.h beside this file, and adds what that path leaves out for 64 bits.
 */
#ifndef DOWNLINK_CROSS_ARM64_WDM_H
#define DOWNLINK_CROSS_ARM64_WDM_H

/* What wdm.h includes must not take the processor for a 32-bit Arm, so it is included before it is called one. */
#define NT_INCLUDED
#include <excpt.h>
#include <ntdef.h>
#include <ntstatus.h>
#include <ntiologc.h>
#include <guiddef.h>
#include <string.h>
#include <dpfilter.h>
#include <intrin.h>

/* wdm.h declares these for 32 bits or for x64 only. */
#define InterlockedAnd _InterlockedAnd
#define InterlockedOr _InterlockedOr
#define InterlockedXor _InterlockedXor
#define InterlockedIncrement _InterlockedIncrement
#define InterlockedDecrement _InterlockedDecrement
#define InterlockedAdd _InterlockedAdd
#define InterlockedExchange _InterlockedExchange
#define InterlockedExchangeAdd _InterlockedExchangeAdd
#define InterlockedCompareExchange _InterlockedCompareExchange
#define InterlockedAnd64 _InterlockedAnd64
#define InterlockedOr64 _InterlockedOr64
#define InterlockedXor64 _InterlockedXor64
#define InterlockedIncrement64 _InterlockedIncrement64
#define InterlockedDecrement64 _InterlockedDecrement64
#define InterlockedAdd64 _InterlockedAdd64
#define InterlockedExchange64 _InterlockedExchange64
#define InterlockedExchangeAdd64 _InterlockedExchangeAdd64
#define InterlockedCompareExchange64 _InterlockedCompareExchange64
#define InterlockedCompareExchangePointer _InterlockedCompareExchangePointer
#define InterlockedExchangePointer _InterlockedExchangePointer
#define InterlockedIncrementSizeT(Addend) InterlockedIncrement64((LONGLONG *)(Addend))
#define InterlockedDecrementSizeT(Addend) InterlockedDecrement64((LONGLONG *)(Addend))
#define InterlockedExchangeAddSizeT(Addend, Value) InterlockedExchangeAdd64((LONGLONG *)(Addend), (LONGLONG)(Value))

#define _M_ARM 7
#include_next <wdm.h>
#undef _M_ARM

#endif
