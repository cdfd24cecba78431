/*
 * The kernel-mode Filter Manager interface, for builds without the WDK.
 *
 * Covers what minifilters use: registration, instances, contexts, callback data, file names, communication ports, work
 * items, I/O of their own and the utility calls. Section-, network- and transaction-specific corners that no modelled
 * machine serves are declared where they are part of a structure.
 *
 * Written from documented names, prototypes and layouts for x64 and later Windows 10; no part of it is Microsoft's
 * text. fltkernel_layout.h, included last, asserts every size, offset and constant.
 */
#ifndef DOWNLINK_CROSS_FLTKERNEL_H
#define DOWNLINK_CROSS_FLTKERNEL_H

#include "fltkernel_types.h"

#include "fltkernel_functions.h"

#include "fltkernel_layout.h"

#endif
