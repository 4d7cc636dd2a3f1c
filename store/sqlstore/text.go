package sqlstore

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/store"
)

// idText is an ID as text that any database takes. The order of the bytes is that of the text by code points, and the
// prefix of an ID gives the prefix of its text. ASCII without 0 and 1, which is what nearly all IDs are, stays as it
// is.
func idText(id string) string {
	plain := true
	for i := range len(id) {
		plain = plain && id[i] > 1 && id[i] < utf8.RuneSelf
	}
	if plain {
		return id
	}
	text := make([]byte, 0, len(id)+16)
	for i := range len(id) {
		if c := id[i]; c <= 1 {
			text = append(text, 1, c+1)
		} else {
			text = utf8.AppendRune(text, rune(c))
		}
	}
	return string(text)
}

// idOf is the ID whose text this is.
func idOf(text string) (string, error) {
	plain := true
	for i := range len(text) {
		plain = plain && text[i] > 1 && text[i] < utf8.RuneSelf
	}
	if plain {
		return text, nil
	}
	id := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		i += size
		if r == 1 && i < len(text) && (text[i] == 1 || text[i] == 2) {
			r = rune(text[i] - 1)
			i++
		} else if r <= 1 || r > 0xff || r == utf8.RuneError {
			return "", fmt.Errorf("%q is not the text of bytes", text)
		}
		id = append(id, byte(r))
	}
	return string(id), nil
}

// wordText is a kind, owner or app as text: as it is wherever that can be.
func wordText(word string) string {
	if utf8.ValidString(word) && !strings.HasPrefix(word, `\`) && strings.IndexByte(word, 0) < 0 {
		return word
	}
	return `\` + idText(word)
}

func wordOf(text string) (string, error) {
	if rest, odd := strings.CutPrefix(text, `\`); odd {
		return idOf(rest)
	}
	return text, nil
}

// after returns the smallest ID that is greater than all with this prefix; empty if there is none.
func after(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

const timeFormat = "2006-01-02 15:04:05.000000"

// timeText is a time to the microsecond, cut. Both dialects read it, and in SQLite its order is that of times.
func (d Dialect) timeText(t time.Time) string {
	// As timeFormat says, which package time is slower at.
	text := t.UTC().AppendFormat(make([]byte, 0, len(timeFormat)+3), time.RFC3339)
	text[len("2006-01-02")] = ' '
	text[len("2006-01-02 15:04:05")] = '.'
	for micros, unit := t.Nanosecond()/1000, 100_000; unit > 0; unit /= 10 {
		text = append(text, byte('0'+micros/unit%10))
	}
	if d == PostgreSQL {
		text = append(text, "+00"...)
	}
	return string(text)
}

// timeBound is a time to compare columns with; those that no column holds lie before or after all that do.
func (d Dialect) timeBound(t time.Time) string {
	early, late := "-infinity", "infinity"
	if d == SQLite {
		early, late = "", "~"
	}
	switch year := t.UTC().Year(); {
	case year < 1:
		return early
	case year > 9999:
		return late
	}
	return d.timeText(t)
}

// isNever reports whether t is the zero time, to the microsecond.
func isNever(t time.Time) bool { return t.Unix() == firstSecond && t.Nanosecond() < 1000 }

// timeArg is a time as a value of a column: NULL for never.
func (d Dialect) timeArg(t time.Time) any {
	if isNever(t) {
		return nil
	}
	return d.timeText(t)
}

// The seconds of the years 1 to 9999, as Unix counts them.
var (
	firstSecond = time.Time{}.Unix()
	lastSecond  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
)

// holds reports whether the columns hold this time.
func holds(t time.Time) bool {
	second := t.Unix()
	return second >= firstSecond && second <= lastSecond
}

// checkTime refuses what they do not hold.
func checkTime(what string, t time.Time) error {
	if !holds(t) {
		return fmt.Errorf("%w: %s is in the year %d, want 1 to 9999", store.ErrInvalid, what, t.UTC().Year())
	}
	return nil
}

// stamp scans a time, of either dialect.
type stamp struct{ time.Time }

func (s *stamp) Scan(value any) (err error) {
	switch v := value.(type) {
	case nil:
		s.Time = time.Time{}
	case time.Time:
		s.Time = v.UTC()
	case []byte:
		s.Time, err = time.Parse(timeFormat, string(v))
	case string:
		s.Time, err = time.Parse(timeFormat, v)
	default:
		err = fmt.Errorf("%T is not a time", value)
	}
	return err
}

// An array is the text of an array of PostgreSQL, which every driver passes on as it is.
type array struct{ text []byte }

func (a *array) next() {
	if len(a.text) == 0 {
		a.text = append(a.text, '{')
	} else {
		a.text = append(a.text, ',')
	}
}

func (a *array) null() {
	a.next()
	a.text = append(a.text, "NULL"...)
}

func (a *array) add(s string) {
	a.next()
	a.text = append(a.text, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			a.text = append(a.text, '\\')
		}
		a.text = append(a.text, s[i])
	}
	a.text = append(a.text, '"')
}

func (a *array) addInt(n int64) {
	a.next()
	a.text = strconv.AppendInt(a.text, n, 10)
}

func (a *array) addTime(t time.Time) {
	if isNever(t) {
		a.null()
	} else {
		a.add(PostgreSQL.timeText(t))
	}
}

func (a *array) String() string {
	if len(a.text) == 0 {
		return "{}"
	}
	return string(append(a.text, '}'))
}
