package sqlstore

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

// all holds every string of one byte, and of two.
func all() (ids []string) {
	for a := range 256 {
		ids = append(ids, string([]byte{byte(a)}))
		for b := range 256 {
			ids = append(ids, string([]byte{byte(a), byte(b)}))
		}
	}
	return ids
}

func TestIDText(t *testing.T) {
	ids := all()
	slices.Sort(ids)
	last := ""
	for _, id := range ids {
		text := idText(id)
		require.True(t, utf8.ValidString(text) && !strings.Contains(text, "\x00"), "%q", id)
		require.Less(t, last, text, "%q is out of order", id)
		last = text
		back, err := idOf(text)
		require.NoError(t, err)
		require.Equal(t, id, back)
		require.True(t, strings.HasPrefix(text, idText(id[:1])))
		if end := after(id); end != "" {
			require.Less(t, id+"\xff\xff", end)
			require.Less(t, idText(id+"\xff\xff"), idText(end))
		} else {
			require.Equal(t, strings.Repeat("\xff", len(id)), id)
		}
	}
	require.Equal(t, "k3qz7m2v.bookbot.group:42", idText("k3qz7m2v.bookbot.group:42"))
	for _, text := range []string{"\x00", "\x01", "\x01\x03", "\x01a", "Ā", "张", "\xff", "\uFFFD", "a\x01"} {
		_, err := idOf(text)
		require.Error(t, err, "%q", text)
	}
}

func TestWordText(t *testing.T) {
	seen := make(map[string]string)
	for _, word := range append(all(), "", "zhang-san", "张三", "😀", `\`, `\\`, `\a`, "\xed\xa0\x80", "\uFFFD") {
		text := wordText(word)
		require.True(t, utf8.ValidString(text) && !strings.Contains(text, "\x00"), "%q", word)
		if other, taken := seen[text]; taken && other != word {
			t.Fatalf("%q and %q are one", word, other)
		}
		seen[text] = word
		back, err := wordOf(text)
		require.NoError(t, err)
		require.Equal(t, word, back)
	}
	for _, plain := range []string{"", "zhang-san", "张三", `a\b`, "\uFFFD", "😀"} {
		require.Equal(t, plain, wordText(plain))
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a.1", "\x00\x01\x02", "\\\xff", "张三", "\x01\x01"} {
		f.Add(s, s+"x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b} {
			id, err := idOf(idText(s))
			require.NoError(t, err)
			require.Equal(t, s, id)
			word, err := wordOf(wordText(s))
			require.NoError(t, err)
			require.Equal(t, s, word)
			if id, err := idOf(s); err == nil { // what can be read is written the same: no two texts are one ID
				require.Equal(t, s, idText(id))
			}
		}
		require.Equal(t, strings.Compare(a, b), strings.Compare(idText(a), idText(b)))
		require.Equal(t, a == b, wordText(a) == wordText(b))
	})
}

func TestStamp(t *testing.T) {
	at := time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)
	for _, value := range []any{at, SQLite.timeText(at), []byte(SQLite.timeText(at)), at.In(time.FixedZone("east", 3600))} {
		var s stamp
		require.NoError(t, s.Scan(value))
		require.True(t, at.Equal(s.Time))
		require.Equal(t, time.UTC, s.Location())
	}
	var s stamp
	require.NoError(t, s.Scan(nil))
	require.True(t, s.IsZero())
	require.Error(t, s.Scan(int64(3)))
	require.Error(t, s.Scan("tomorrow"))
	require.Nil(t, SQLite.timeArg(time.Time{}.Add(999))) // zero to the microsecond
	require.NotNil(t, SQLite.timeArg(time.Time{}.Add(time.Microsecond)))
}

// What is made faster is what package time makes of it, at both ends of what the columns hold, and beyond there is no text.
func TestTimeText(t *testing.T) {
	first, last := time.Time{}, time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	times := []time.Time{first, first.Add(1), first.Add(999), first.Add(time.Microsecond), last, last.Add(-time.Microsecond), time.Unix(0, 0), time.Unix(-1, 999_999_000)}
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		times = append(times, time.Unix(first.Unix()+random.Int64N(last.Unix()-first.Unix()), random.Int64N(1e9)).In(time.FixedZone("", random.IntN(20000)-10000)))
	}
	for _, at := range times {
		require.True(t, holds(at), at)
		require.Equal(t, at.UTC().Format(timeFormat), SQLite.timeText(at))
		require.Equal(t, at.UTC().Format(timeFormat)+"+00", PostgreSQL.timeText(at))
		require.Equal(t, at.Sub(first) < time.Microsecond, isNever(at), at)
	}
	for _, at := range []time.Time{first.Add(-1), last.Add(1), time.Unix(1<<62, 0), time.Unix(-1<<62, 0)} {
		require.False(t, holds(at), at)
		require.False(t, isNever(at), at)
		require.ErrorIs(t, checkTime("it", at), store.ErrInvalid)
	}
}
