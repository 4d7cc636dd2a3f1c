package sqlstore_test

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// use is what one use of a token is: three checks, a spend, a ledger entry.
func use(account string, entry int64) []store.Op {
	token := account + ".g5f0c1a2"
	return []store.Op{
		store.Check("revocation", account+".all", 0), store.Check("revocation", account+".bookbot.group:42", 0), store.Check("revocation", token, 0),
		store.Spend("token", token, 1, nil),
		store.Put(store.Record{Kind: "ledger", ID: account + "." + strconv.FormatInt(entry+1<<40, 16), Owner: account, App: "bookbot", NotAfter: now, Data: make([]byte, 120)}),
	}
}

func token(account string, left int64) store.Op {
	return store.Put(store.Record{
		Kind: "token", ID: account + ".g5f0c1a2", Owner: account, App: "bookbot", Left: left, NotAfter: now.Add(time.Hour), Data: make([]byte, 32),
	})
}

// BenchmarkPostgreSQL compares a whole use with a bare single-row update, through the same driver and with the same number of callers; and both with one row
// that all callers want.
func BenchmarkPostgreSQL(b *testing.B) {
	db, _ := postgresNodes(b, postgresDSN(b))
	s := newStore(b, db, sqlstore.PostgreSQL)
	const k = 1000
	for i := range k {
		applied(b, s, token(fmt.Sprintf("k3qz7m2v%08x", i), 1<<50))
	}
	var entry atomic.Int64
	for _, rows := range []int64{k, 1} {
		run := func(name string, f func(account string, i int64) error) {
			b.Run(fmt.Sprintf("%s/tokens=%d", name, rows), func(b *testing.B) {
				b.SetParallelism(6) // times GOMAXPROCS, and no more than there are connections
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						i := entry.Add(1)
						if err := f(fmt.Sprintf("k3qz7m2v%08x", i*7919%rows), i); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			})
		}
		run("use", func(account string, i int64) error {
			out, err := s.Apply(context.Background(), now, use(account, i))
			if err == nil && !out.Applied() {
				err = fmt.Errorf("%+v", out)
			}
			return err
		})
		run("bare", func(account string, i int64) error {
			var left int64
			return db.QueryRowContext(context.Background(), "UPDATE behest_records SET left_uses = left_uses - 1 WHERE kind = $1 AND id = $2 AND left_uses >= 1 RETURNING left_uses",
				"token", account+".g5f0c1a2").Scan(&left)
		})
	}
}

func BenchmarkSQLite(b *testing.B) {
	db, _ := sqliteNodes(b)
	s := newStore(b, db, sqlstore.SQLite)
	applied(b, s, token("a", 1<<50))
	for i := int64(0); b.Loop(); i++ {
		out, err := s.Apply(context.Background(), now, use("a", i))
		require.NoError(b, err)
		require.True(b, out.Applied())
	}
}
