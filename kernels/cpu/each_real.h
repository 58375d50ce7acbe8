/* Includes row_real.h and the file TEMPLATE once for float and once for double, and for int64_t when EACH_INT is
 * defined. REAL        type of the computation             REAL_DTYPE  its dtype REAL_INT    the integer as wide as
 * REAL ACC         type of a chunk's sums (integers wrap: unsigned) WIDE        type in which sums of chunks add up
 *   FN(name)    the name of a function or type for it: name_f32, name_f64, name_i64 */
#include "row.h"

#define REAL float
#define REAL_INT int32_t
#define REAL_BYTES 4
#define REAL_VMAX ROW_VMAX_F32
#define REAL_VMIN ROW_VMIN_F32
#define REAL_DTYPE HAIAN_F32
#define REAL_IS_FLOAT 1
#define REAL_IS_INT 0
#define REAL_IS_NAN(v) ((v) != (v))
#define REAL_OVERFLOWED(sum) __builtin_expect(!isfinite(sum), 0)
#define REAL_EXP haian_expf
#define REAL_LOG haian_logf
#define ACC float
#define WIDE double
#define FN(name) name##_f32
#include "row_real.h"
#include TEMPLATE
#include "real_end.h"

#define REAL double
#define REAL_INT int64_t
#define REAL_BYTES 8
#define REAL_VMAX ROW_VMAX_F64
#define REAL_VMIN ROW_VMIN_F64
#define REAL_DTYPE HAIAN_F64
#define REAL_IS_FLOAT 0
#define REAL_IS_INT 0
#define REAL_IS_NAN(v) ((v) != (v))
#define REAL_OVERFLOWED(sum) 0
#define REAL_EXP haian_exp
#define REAL_LOG haian_log
#define ACC double
#define WIDE double
#define FN(name) name##_f64
#include "row_real.h"
#include TEMPLATE
#include "real_end.h"

#if defined(EACH_INT)
#define REAL int64_t
#define REAL_VMAX pick_vec_largest_i64
#define REAL_VMIN pick_vec_smallest_i64
#define REAL_INT int64_t
#define REAL_BYTES 8
#define REAL_DTYPE HAIAN_I64
#define REAL_IS_FLOAT 0
#define REAL_IS_INT 1
#define REAL_IS_NAN(v) 0
#define REAL_OVERFLOWED(sum) 0
#define ACC uint64_t
#define WIDE uint64_t
#define FN(name) name##_i64
#include "row_real.h"
#include TEMPLATE
#include "real_end.h"
#endif
