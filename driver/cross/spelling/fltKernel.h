/* The WDK's own spelling of the name, for hosts whose file names are case sensitive. */
#include "../fltkernel.h"
