package grant_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// bare is a world without a probe in between.
func bare(b *testing.B, uses int) (*world, *grant.Engine) {
	w := newWorld(b, func(c *grant.Config) {
		c.Store, c.Now = store.NewMemory(), nil
		c.Triggers[0].Uses = uses
	})
	return w, w.Engine
}

func BenchmarkEmitMatch(b *testing.B) {
	_, e := bare(b, 3)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ev := mention(strconv.Itoa(i))
		ev.Account = strconv.Itoa(i % 1000)
		if got, err := e.Emit(ctx, ev); err != nil || len(got) != 1 {
			b.Fatal(got, err)
		}
	}
}

func BenchmarkRedeem(b *testing.B) {
	_, e := bare(b, 3)
	var codes []grant.Secret
	for i := range 10_000 {
		ev := mention(strconv.Itoa(i))
		ev.Account = strconv.Itoa(i % 1000)
		got, err := e.Emit(ctx, ev)
		require.NoError(b, err)
		codes = append(codes, got[0].Code)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i > 0 && i%len(codes) == 0 { // used up: others
			b.StopTimer()
			for j := range codes {
				ev := mention(strconv.Itoa(i + j))
				ev.Account = strconv.Itoa(j % 1000)
				got, err := e.Emit(ctx, ev)
				require.NoError(b, err)
				codes[j] = got[0].Code
			}
			b.StartTimer()
		}
		if _, _, err := e.Redeem(ctx, "bookbot", codes[i%len(codes)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUse(b *testing.B) {
	w, e := bare(b, grant.Unlimited)
	token := w.token("m1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Use(ctx, token, write); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUseParallel(b *testing.B) {
	w, e := bare(b, grant.Unlimited)
	tokens := make([]string, 64)
	for i := range tokens {
		ev := mention("m1")
		ev.Account = strconv.Itoa(i)
		tokens[i] = w.redeem(w.emit(ev))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := e.Use(ctx, tokens[i%len(tokens)], write); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkUseForged(b *testing.B) {
	w, e := bare(b, 1)
	real := w.token("m1")
	for name, forged := range map[string]string{
		"noise":   "bhst_" + strings.Repeat("A", len(real)-5),
		"altered": real[:len(real)-8] + strings.Repeat("A", 8),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Use(ctx, forged, write); err == nil {
					b.Fatal("used")
				}
			}
		})
	}
}
