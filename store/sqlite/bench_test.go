package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

const writers = 64

// use is what one use of a token is: three checks, a spend, a ledger entry.
func use(account string, entry int64) []store.Op {
	token := account + ".g5f0c1a2"
	return []store.Op{
		store.Check("revocation", account+".all", 0), store.Check("revocation", account+".bookbot.group:42", 0), store.Check("revocation", token, 0),
		store.Spend("token", token, 1, nil),
		store.Put(store.Record{Kind: "ledger", ID: account + "." + strconv.FormatInt(entry+1<<40, 16), Owner: account, App: "bookbot", NotAfter: now, Data: make([]byte, 120)}),
	}
}

func accounts(b *testing.B, s *sqlite.Store, k int) []string {
	names := make([]string, k)
	for i := range names {
		names[i] = fmt.Sprintf("k3qz7m2v%08x", i)
		out, err := s.Apply(b.Context(), now, []store.Op{store.Put(store.Record{
			Kind: "token", ID: names[i] + ".g5f0c1a2", Owner: names[i], App: "bookbot", Left: 1 << 50, NotAfter: now.Add(time.Hour), Data: make([]byte, 32),
		})})
		require.NoError(b, err)
		require.True(b, out.Applied())
	}
	return names
}

// BenchmarkUse is a whole use by 64 callers at once, over many tokens and over one.
func BenchmarkUse(b *testing.B) {
	for _, k := range []int{1000, 1} {
		b.Run(fmt.Sprint("tokens=", k), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "db"))
			names := accounts(b, s, k)
			var entry atomic.Int64
			b.SetParallelism(writers)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := entry.Add(1)
					out, err := s.Apply(context.Background(), now, use(names[i*7919%int64(k)], i))
					if err != nil || !out.Applied() {
						b.Error(out, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

// BenchmarkBare is the engine by itself: single-row updates through the same driver and settings, 64 in one commit.
func BenchmarkBare(b *testing.B) {
	path := filepath.Join(b.TempDir(), "db")
	s := open(b, path)
	names := accounts(b, s, 1000)
	require.NoError(b, s.Close())
	db, err := sql.Open("sqlite", "file:"+path+"?_journal_mode=WAL&_synchronous=FULL")
	require.NoError(b, err)
	defer db.Close()
	conn, err := db.Conn(b.Context())
	require.NoError(b, err)
	defer conn.Close()
	var st [3]*sql.Stmt
	for i, query := range []string{"BEGIN IMMEDIATE", "UPDATE behest_records SET left_uses = left_uses - 1 WHERE kind = ? AND id = ? AND left_uses >= 1", "COMMIT"} {
		st[i], err = conn.PrepareContext(b.Context(), query)
		require.NoError(b, err)
	}
	ctx := context.Background()
	b.ResetTimer()
	for i := 0; i < b.N; i += writers {
		_, err := st[0].ExecContext(ctx)
		require.NoError(b, err)
		for j := range min(writers, b.N-i) {
			_, err := st[1].ExecContext(ctx, "token", names[(i+j)*7919%1000]+".g5f0c1a2")
			require.NoError(b, err)
		}
		_, err = st[2].ExecContext(ctx)
		require.NoError(b, err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}
