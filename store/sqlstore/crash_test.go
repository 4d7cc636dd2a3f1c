package sqlstore_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

const (
	crashes      = 32
	crashWorkers = 4
	crashUses    = int64(1) << 40
)

func TestMain(m *testing.M) {
	if where := os.Getenv("BEHEST_CRASH"); where != "" {
		spendUntilKilled(where)
		return
	}
	os.Exit(m.Run())
}

// spendUntilKilled is another process: it spends, and says so once it is acknowledged.
func spendUntilKilled(where string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	driver, rest, _ := strings.Cut(where, " ")
	d := sqlstore.PostgreSQL
	if driver == "sqlite" {
		d = sqlstore.SQLite
	}
	db, err := sql.Open(driver, rest)
	check(err)
	check(sqlstore.Migrate(context.Background(), db, d))
	s, err := sqlstore.New(db, d)
	check(err)
	var workers sync.WaitGroup
	for w := range crashWorkers {
		workers.Go(func() {
			var err error
			for i := 0; ; i++ {
				id := fmt.Sprintf("a.%d-%d-%d", os.Getpid(), w, i)
				ops := []store.Op{
					store.Check("revocation", "a.all", 0), store.Spend("token", "a.t", 1, nil), store.Put(store.Record{Kind: "ledger", ID: id, Owner: "li", Data: []byte(id)}),
				}
				var out store.Outcome
				if w%2 == 0 {
					out, err = s.Apply(context.Background(), now, ops)
				} else {
					ops[2].Record.Owner = "effect"
					out, err = withEffect(db, d, id, ops)
				}
				if err == nil && !out.Applied() {
					err = fmt.Errorf("refused: %+v", out)
				}
				check(err)
				_, err = fmt.Println("spent", id)
				check(err)
			}
		})
	}
	workers.Wait()
}

// withEffect is a use and what it is for, in one transaction.
func withEffect(db *sql.DB, d sqlstore.Dialect, id string, ops []store.Op) (store.Outcome, error) {
	tx, err := db.Begin()
	if err != nil {
		return store.Outcome{}, err
	}
	defer tx.Rollback()
	if _, err := tx.Exec("INSERT INTO effects (id) VALUES ('" + id + "')"); err != nil {
		return store.Outcome{}, err
	}
	out, err := sqlstore.Tx(tx, d).Apply(context.Background(), now, ops)
	if err != nil || !out.Applied() {
		return out, err
	}
	return out, tx.Commit()
}

// crash starts the other process and kills it once it has acknowledged a few. It returns all that was acknowledged.
func crash(t *testing.T, where string, after int) (acknowledged []string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "BEHEST_CRASH="+where)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break // what it has begun to say is not said
		}
		require.NoError(t, err)
		what, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		require.Equal(t, "spent", what, line)
		if acknowledged = append(acknowledged, id); len(acknowledged) == after {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.Error(t, cmd.Wait(), "it was not killed")
	require.GreaterOrEqual(t, len(acknowledged), after)
	return acknowledged
}

// survives kills processes again and again, and holds what they had said against what is there.
func survives(t *testing.T, where string, db *sql.DB, s store.Store, settled func()) {
	_, err := db.Exec("CREATE TABLE effects (id text PRIMARY KEY)")
	require.NoError(t, err)
	rounds := crashes
	if testing.Short() {
		rounds = 4
	}
	applied(t, s, store.Put(store.Record{Kind: "token", ID: "a.t", Left: crashUses}))
	var acknowledged []string
	for range rounds {
		acknowledged = append(acknowledged, crash(t, where, 1+rand.IntN(30))...)
	}
	settled()
	written, effects := make(map[string]bool), make(map[string]bool)
	for q := (store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage}); ; {
		page, err := s.List(t.Context(), q)
		require.NoError(t, err)
		for _, r := range page {
			require.Equal(t, r.ID, string(r.Data))
			written[r.ID] = true
			if r.Owner == "effect" {
				effects[r.ID] = true
			}
		}
		if len(page) == 0 {
			break
		}
		q.After = page[len(page)-1].ID
	}
	for _, id := range acknowledged {
		require.True(t, written[id], "%s was acknowledged and is lost", id)
	}
	rows, err := db.Query("SELECT id FROM effects")
	require.NoError(t, err)
	defer rows.Close()
	done := make(map[string]bool)
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		done[id] = true
	}
	require.NoError(t, rows.Err())
	require.Equal(t, effects, done, "what was used and what was done for it")
	got, err := s.Get(t.Context(), "token", "a.t")
	require.NoError(t, err)
	require.Equal(t, int64(len(written)), crashUses-got[0].Left, "what was spent and what was written down")
	require.LessOrEqual(t, len(written)-len(acknowledged), rounds*(crashWorkers+1), "more was done than can have been on its way")
	t.Logf("%d processes killed, %d uses acknowledged, %d done, %d of them with an effect", rounds, len(acknowledged), len(written), len(done))
}

func TestCrashPostgreSQL(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	db := openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	if strings.Contains(dsn, "://") {
		mark := "?"
		if strings.Contains(dsn, "?") {
			mark = "&"
		}
		dsn += mark + "search_path=" + schema + "&application_name=" + schema
	} else {
		dsn += " search_path=" + schema + " application_name=" + schema
	}
	survives(t, "pgx "+dsn, db, newStore(t, db, sqlstore.PostgreSQL), func() {
		active(t, db, schema, "", 0) // the server still carries out what a killed client has sent
	})
}

func TestCrashSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := openSQLite(t, path)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.SQLite))
	survives(t, "sqlite "+sqliteName(path), db, newStore(t, db, sqlstore.SQLite), func() {})
}
