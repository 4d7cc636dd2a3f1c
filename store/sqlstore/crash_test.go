package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// In a process that will be killed, where is "plain" or "effects", a driver, and what that opens.
func TestMain(m *testing.M) {
	crash.Main(func(where string) (store.Store, error) {
		words := strings.SplitN(where, " ", 3)
		d := sqlstore.PostgreSQL
		if words[1] == "sqlite" {
			d = sqlstore.SQLite
		}
		db, err := sql.Open(words[1], words[2])
		if err != nil {
			return nil, err
		}
		if err := sqlstore.Migrate(context.Background(), db, d); err != nil {
			return nil, err
		}
		s, err := sqlstore.New(db, d)
		if words[0] == "effects" {
			return effects{s, db, d}, err
		}
		return s, err
	})
	os.Exit(m.Run())
}

// effects is a store that writes what every other use is for into a table of its own, in one transaction with the use.
type effects struct {
	store.Store
	db *sql.DB
	d  sqlstore.Dialect
}

func hasEffect(id string) bool { return id[len(id)-1]%2 == 0 }

func (s effects) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	id := ops[len(ops)-1].Record.ID // the ledger entry's
	if !hasEffect(id) {
		return s.Store.Apply(ctx, now, ops)
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return store.Outcome{}, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO effects (id) VALUES ('"+id+"')"); err != nil {
		return store.Outcome{}, err
	}
	out, err := sqlstore.Tx(tx, s.d).Apply(ctx, now, ops)
	if err != nil || !out.Applied() {
		return out, err
	}
	return out, tx.Commit()
}

// survives kills processes again and again, and holds what they had said against what is there.
func survives(t *testing.T, where string, db *sql.DB, d sqlstore.Dialect, kills int, settled func()) {
	_, err := db.Exec("CREATE TABLE effects (id text PRIMARY KEY)")
	require.NoError(t, err)
	s := newStore(t, db, d)
	kill := func(job crash.Job, how string, n int) []string {
		require.NoError(t, job.Prepare(t.Context(), s))
		rounds := crash.Rounds(n)
		said := crash.Kill(t, job, how+" "+where, rounds)
		require.Greater(t, len(said), rounds, "the processes hardly did anything")
		settled()
		done, err := job.Audit(t.Context(), s, said, rounds*crash.Workers)
		require.NoError(t, err)
		t.Logf("%d processes killed, %d writes acknowledged, %d done", rounds, len(said), len(done))
		return done
	}
	used := slices.DeleteFunc(kill(crash.Spending(), "effects", kills*3/10), func(id string) bool { return !hasEffect(id) })
	rows, err := db.Query("SELECT id FROM effects")
	require.NoError(t, err)
	defer rows.Close()
	var done []string
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		done = append(done, id)
	}
	require.NoError(t, rows.Err())
	require.NotEmpty(t, done)
	require.ElementsMatch(t, used, done, "what was used and what was done for it")
	kill(crash.Granting(), "plain", kills*7/10)
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
		dsn += fmt.Sprint(mark, "search_path=", schema, "&application_name=", schema)
	} else {
		dsn += fmt.Sprint(" search_path=", schema, " application_name=", schema)
	}
	survives(t, "pgx "+dsn, db, sqlstore.PostgreSQL, 200, func() {
		active(t, db, schema, "", 0) // the server still carries out what a killed client has sent
	})
}

func TestCrashSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := openSQLite(t, path)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.SQLite))
	survives(t, "sqlite "+sqliteName(path), db, sqlstore.SQLite, 50, func() {}) // package sqlite kills more
}
