/*
 * The driver's version: one place for the version resource (by downlink.rc, or made by the toolchain where there is
 * no resource compiler) and for the stamp of the INF.
 */
#ifndef DOWNLINK_VERSION_H
#define DOWNLINK_VERSION_H

#define DOWNLINK_VERSION_NUMBERS 0, 1, 0, 0
#define DOWNLINK_VERSION_STRING "0.1.0.0"
#define DOWNLINK_VERSION_DATE "11/21/2026"
#define DOWNLINK_VERSION_COMPANY "Downlink"
#define DOWNLINK_VERSION_PRODUCT "Downlink"
#define DOWNLINK_VERSION_DESCRIPTION "Downlink file activity minifilter"
#define DOWNLINK_VERSION_COPYRIGHT "MIT licence"

#endif
