package redisstore

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// ErrCorrupt is wrapped by errors for a record that is not as this package wrote it: overwritten, cut, of another
// type, or gone while an index still lists it (which is how an eviction looks). The error names the record.
var ErrCorrupt = errors.New("corrupt record")

func corrupt(kind, id string) error {
	return fmt.Errorf("%w: %s %q", ErrCorrupt, kind, id)
}

// A value is one string, so that a Check reads 82 bytes of it and a Spend writes 19, whatever it holds:
//
//	1 version left due notAfter len(owner) len(app) owner app data
//	1      16   19  19       19          4        4
//
// Numbers are decimals with leading zeros: Lua's own are doubles, which are exact only up to 2⁵³. Times are
// microseconds since year 1; zero is the zero time.
const (
	headLen  = 82
	restFrom = 36 // due and all that follows is the caller's; version and left are the script's
)

// A stamp is a time in microseconds since year 1.
type stamp int64

var (
	epoch    = -time.Time{}.UnixMicro()
	maxStamp = stampOf(time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC))
)

func stampOf(t time.Time) stamp { return stamp(t.UnixMicro() + epoch) }

// clamp is for times that are compared with and not kept.
func clamp(t time.Time) stamp { return min(max(stampOf(t), 0), maxStamp) }

func (s stamp) digits() string { return fmt.Sprintf("%019d", int64(s)) }

// score is for sorted sets, which hold doubles: exact from 1684 to 2255, beyond that within 32 µs, and always in order.
func (s stamp) score() string { return strconv.FormatInt(int64(s)-epoch, 10) }

func (s stamp) time() time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(s) - epoch).UTC()
}

// keepable checks the times of a record.
func keepable(r *store.Record) error {
	for _, t := range []time.Time{r.Due, r.NotAfter} {
		if s := stampOf(t); s < 0 || s > maxStamp || t.Year() > 9999 {
			return fmt.Errorf("%w: %s %q: a time of year %d, want 1 to 9999", store.ErrInvalid, r.Kind, r.ID, t.Year())
		}
	}
	return nil
}

// rest is a value without what the script puts in front of it.
func rest(r *store.Record) string {
	var b strings.Builder
	b.Grow(headLen - restFrom + len(r.Owner) + len(r.App) + len(r.Data))
	var buf [headLen]byte
	out := pad(buf[:0], uint64(stampOf(r.Due)), 19)
	out = pad(out, uint64(stampOf(r.NotAfter)), 19)
	out = pad(out, uint64(len(r.Owner)), 4)
	out = pad(out, uint64(len(r.App)), 4)
	b.Write(out)
	b.WriteString(r.Owner)
	b.WriteString(r.App)
	b.Write(r.Data)
	return b.String()
}

// pad appends v with leading zeros.
func pad(b []byte, v uint64, width int) []byte {
	from := len(b)
	for range width {
		b = append(b, '0')
	}
	for i := len(b) - 1; i >= from && v > 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return b
}

func digits(v int64) string {
	var buf [19]byte
	return string(pad(buf[:0], uint64(v), 19))
}

// version is a version that a Put, Delete or Check wants. Those that no record can have get a width that none has.
func version(v uint64) string {
	if v == store.AnyVersion {
		return "*"
	}
	return fmt.Sprintf("%016d", v)
}

// appKey is how an app stands in front of an ID in an index: no app's key is the beginning of another's.
func appKey(app string) string {
	var buf [4]byte
	return string(pad(buf[:0], uint64(len(app)), 4)) + app
}

// parse reads a value.
func parse(kind, id, value string) (r store.Record, err error) {
	if len(value) < headLen || value[0] != '1' {
		return r, corrupt(kind, id)
	}
	n := [6]uint64{}
	from := 1
	for i, width := range [6]int{16, 19, 19, 19, 4, 4} {
		for _, c := range []byte(value[from : from+width]) {
			if c < '0' || c > '9' {
				return r, corrupt(kind, id)
			}
			n[i] = n[i]*10 + uint64(c-'0')
		}
		from += width
	}
	if n[0] == 0 || n[1] > math.MaxInt64 || n[2] > uint64(maxStamp) || n[3] > uint64(maxStamp) || n[4] > store.MaxKey || n[5] > store.MaxKey ||
		uint64(len(value)) < headLen+n[4]+n[5] || uint64(len(value)) > headLen+n[4]+n[5]+store.MaxData {
		return r, corrupt(kind, id)
	}
	owner, app := headLen+int(n[4]), headLen+int(n[4])+int(n[5])
	r = store.Record{
		Kind: kind, ID: id, Version: n[0], Owner: strings.Clone(value[headLen:owner]), App: strings.Clone(value[owner:app]),
		Due: stamp(n[2]).time(), NotAfter: stamp(n[3]).time(), Left: int64(n[1]),
	}
	if app < len(value) {
		r.Data = []byte(value[app:])
	}
	return r, nil
}
