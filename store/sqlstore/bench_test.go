package sqlstore_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
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

// BenchmarkPostgreSQL compares a whole use with a bare single-row update, through the same driver and with as many callers; and uses of one single token by
// 64 callers with both. They take turns, so that what else the machine does hits all of them, and pgbench has its turns, too, if it is there: the same
// update, from a client that costs next to nothing. Everything is written to disk before it is acknowledged, if the server is set so.
//
//	go test ./store/sqlstore -run '^$' -bench PostgreSQL -benchtime 10x
func BenchmarkPostgreSQL(b *testing.B) {
	const tokens, callers, crowd = 1000, 12, 64 // as many callers as there are connections
	dsn := postgresDSN(b)
	schema := newSchema(b, dsn)
	db := openPostgres(b, dsn, schema)
	require.NoError(b, sqlstore.Migrate(b.Context(), db, sqlstore.PostgreSQL))
	s := newStore(b, db, sqlstore.PostgreSQL)
	account := func(i int64) string { return fmt.Sprintf("k3qz7m2v%d", 10000000+i) }
	for i := range int64(tokens) {
		applied(b, s, token(account(i), 1<<50))
	}
	const update = "UPDATE behest_records SET left_uses = left_uses - 1 WHERE kind = $1 AND id = $2 AND left_uses >= 1 RETURNING left_uses"
	bare := func(account string, _ int64) error {
		return db.QueryRowContext(context.Background(), update, "token", account+".g5f0c1a2").Scan(new(int64))
	}
	whole := func(account string, i int64) error {
		out, err := s.Apply(context.Background(), now, use(account, i))
		if err == nil && !out.Applied() {
			err = fmt.Errorf("%+v", out)
		}
		return err
	}
	cases := []*struct {
		name             string
		callers, rows, n int64 // n: calls a turn
		call             func(account string, i int64) error
		took             time.Duration
		done             int64
	}{
		{name: "bare", callers: callers, rows: tokens, n: 1200, call: bare},
		{name: "use", callers: callers, rows: tokens, n: 1200, call: whole},
		{name: "bare-hot", callers: crowd, rows: 1, n: 320, call: bare},
		{name: "use-hot", callers: crowd, rows: 1, n: 640, call: whole},
	}
	pgbench, pgTook, pgDone := newPgbench(b, dsn, schema, callers, callers*100), time.Duration(0), 0
	var entry atomic.Int64
	for b.Loop() {
		for _, c := range cases {
			begin := time.Now()
			var workers sync.WaitGroup
			for w := range c.callers {
				workers.Go(func() {
					for i := w; i < c.n; i += c.callers {
						e := entry.Add(1)
						if err := c.call(account(e*7919%c.rows), e); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			workers.Wait()
			c.took += time.Since(begin)
			c.done += c.n
		}
		if pgbench != nil {
			pgTook += pgbench()
			pgDone += callers * 100
		}
	}
	rate := func(i int) float64 { return float64(cases[i].done) / cases[i].took.Seconds() }
	for i, c := range cases {
		b.ReportMetric(rate(i), c.name+"/s")
	}
	b.ReportMetric(100*rate(1)/rate(0), "%use/bare")
	b.ReportMetric(100*rate(3)/rate(0), "%use-hot/bare")
	b.ReportMetric(100*rate(3)/rate(1), "%use-hot/use")
	if pgbench != nil {
		b.ReportMetric(float64(pgDone)/pgTook.Seconds(), "pgbench/s")
	}
	b.ReportMetric(0, "ns/op")
}

// newPgbench returns what lets pgbench make so many bare updates, and says how long it took; nil where there is no pgbench.
func newPgbench(b *testing.B, dsn, schema string, clients, n int) func() time.Duration {
	path, err := exec.LookPath("pgbench")
	if err != nil {
		b.Log("there is no pgbench beside it:", err)
		return nil
	}
	script := filepath.Join(b.TempDir(), "update.sql")
	require.NoError(b, os.WriteFile(script, []byte(`\set i random(10000000, 10000999)
UPDATE behest_records SET left_uses = left_uses - 1 WHERE kind = 'token' AND id = 'k3qz7m2v' || :i::text || '.g5f0c1a2' AND left_uses >= 1 RETURNING left_uses;
`), 0o600))
	rate := regexp.MustCompile(`tps = ([0-9.]+) \(without`)
	return func() time.Duration {
		cmd := exec.CommandContext(b.Context(), path, "-n", "-f", script, "-M", "prepared", "-c", strconv.Itoa(clients), "-t", strconv.Itoa(n/clients), dsn)
		cmd.Env = append(os.Environ(), "PGOPTIONS=-c search_path="+schema)
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, "%s", out)
		found := rate.FindSubmatch(out)
		require.NotNil(b, found, "%s", out)
		tps, err := strconv.ParseFloat(string(found[1]), 64)
		require.NoError(b, err)
		return time.Duration(float64(n) / tps * float64(time.Second))
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
