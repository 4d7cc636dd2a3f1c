// Package sqlpeers shows that store/sqlstore works with what people have around database/sql: transactions of sqlx and of xorm, and lib/pq as the driver.
package sqlpeers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"
	"xorm.io/xorm"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
	"github.com/behest-go/behest/store/storetest"
)

const defaultDSN = "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"

var schemas atomic.Int64

// postgres is the DSN of a schema of the test's own on the server that tests use. Without one they skip, but not under CI=true.
func postgres(t testing.TB) string {
	t.Helper()
	dsn := os.Getenv("BEHEST_POSTGRES")
	if dsn == "" {
		dsn = defaultDSN
	}
	admin, err := sql.Open("postgres", dsn)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := admin.PingContext(ctx); err != nil {
		admin.Close()
		if os.Getenv("CI") == "true" {
			t.Fatalf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
		}
		t.Skipf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
	}
	schema := fmt.Sprintf("behest_peers_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), schemas.Add(1))
	_, err = admin.Exec("CREATE SCHEMA " + schema)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec("SET client_min_messages = error; DROP SCHEMA " + schema + " CASCADE")
		require.NoError(t, errors.Join(err, admin.Close()))
	})
	switch {
	case !strings.Contains(dsn, "://"):
		return dsn + " search_path=" + schema
	case strings.Contains(dsn, "?"):
		return dsn + "&search_path=" + schema
	}
	return dsn + "?search_path=" + schema
}

func sqliteName(path string) string { return path + "?_pragma=busy_timeout(10000)&_txlock=immediate" }

func open(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	db.SetMaxOpenConns(12)
	db.SetMaxIdleConns(12)
	t.Cleanup(func() { db.Close() })
	return db
}

func newStore(t testing.TB, db *sql.DB, d sqlstore.Dialect) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.New(db, d)
	require.NoError(t, err)
	return s
}

// The whole contract, through another driver than that of sqlstore's own tests.
func TestLibPQ(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		dsn := postgres(t)
		one, two := open(t, "postgres", dsn), open(t, "postgres", dsn)
		require.NoError(t, sqlstore.Migrate(t.Context(), one, sqlstore.PostgreSQL))
		return newStore(t, one, sqlstore.PostgreSQL), newStore(t, two, sqlstore.PostgreSQL)
	})
}

// Calls for one aggregate that go together, one of which breaks a rule of the operator's: through lib/pq, too, that one fails alone.
func TestLibPQTogether(t *testing.T) {
	db := open(t, "postgres", postgres(t))
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s := newStore(t, db, sqlstore.PostgreSQL)
	_, err := db.Exec("ALTER TABLE behest_records ADD CONSTRAINT no_seven CHECK (app <> 'seven')")
	require.NoError(t, err)
	const callers, each = 32, 10
	errs := make([]error, callers*each)
	var done sync.WaitGroup
	for w := range callers {
		done.Go(func() {
			for i := w * each; i < (w+1)*each; i++ {
				app := fmt.Sprint(i)
				if i%50 == 7 {
					app = "seven"
				}
				out, err := s.Apply(context.Background(), time.Unix(2e9, 0), []store.Op{
					store.Spend("count", "a.c", 1, &store.Record{Left: callers * each}), store.Put(store.Record{Kind: "entry", ID: fmt.Sprint("a.", i), App: app}),
				})
				if err == nil && !out.Applied() {
					err = fmt.Errorf("%+v", out)
				}
				errs[i] = err
			}
		})
	}
	done.Wait()
	failed := 0
	for i, err := range errs {
		if i%50 == 7 {
			require.ErrorContains(t, err, "no_seven")
			failed++
		} else {
			require.NoError(t, err, "%d", i)
		}
	}
	got, err := s.Get(t.Context(), "count", "a.c")
	require.NoError(t, err)
	require.Equal(t, int64(failed), got[0].Left)
}

// A peer begins a transaction by its own means.
type peer struct {
	name  string
	begin func(t testing.TB, db *sql.DB, driver, dsn string) (x sqlstore.Execer, insert func(text string) error, commit, rollback func() error)
}

// Messages are what the host keeps.
type Messages struct {
	Text string `xorm:"text" db:"text"`
}

var peers = []peer{
	{"sqlx", func(t testing.TB, db *sql.DB, driver, _ string) (sqlstore.Execer, func(string) error, func() error, func() error) {
		tx, err := sqlx.NewDb(db, driver).BeginTxx(t.Context(), nil)
		require.NoError(t, err)
		return tx, func(text string) error {
			_, err := tx.NamedExec("INSERT INTO messages (text) VALUES (:text)", Messages{text})
			return err
		}, tx.Commit, tx.Rollback
	}},
	{"xorm", func(t testing.TB, _ *sql.DB, driver, dsn string) (sqlstore.Execer, func(string) error, func() error, func() error) {
		engine, err := xorm.NewEngine(driver, dsn)
		require.NoError(t, err)
		session := engine.NewSession()
		require.NoError(t, session.Begin())
		t.Cleanup(func() { session.Close(); engine.Close() })
		return session.Tx().Tx, func(text string) error {
			_, err := session.Insert(&Messages{text})
			return err
		}, session.Commit, session.Rollback
	}},
}

var (
	group = scope.MustDomain("group:42")
	write = scope.MustParse("group:42/message.write")
)

func newEngine(st store.Store) (*grant.Engine, error) {
	return grant.NewEngine(grant.Config{
		Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)),
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 2}},
	})
}

func mention(id string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bookbot"}
}

// A message and its grant, a use and its effect are committed together or not at all, in each peer's own transaction; what is refused there poisons nothing.
func TestTransactions(t *testing.T) {
	for _, database := range []string{"PostgreSQL", "SQLite"} {
		for _, p := range peers {
			t.Run(p.name+"/"+database, func(t *testing.T) {
				driver, d, dsn := "sqlite", sqlstore.SQLite, ""
				if database == "PostgreSQL" {
					driver, d, dsn = "postgres", sqlstore.PostgreSQL, postgres(t)
				} else {
					dsn = sqliteName(filepath.Join(t.TempDir(), "db"))
				}
				db := open(t, driver, dsn)
				require.NoError(t, sqlstore.Migrate(t.Context(), db, d))
				_, err := db.Exec("CREATE TABLE messages (text text)")
				require.NoError(t, err)
				e, err := newEngine(newStore(t, db, d))
				require.NoError(t, err)

				var code grant.Secret
				for _, kept := range []bool{false, true} {
					x, insert, commit, rollback := p.begin(t, db, driver, dsn)
					require.NoError(t, insert("@bookbot which one?"))
					issued, err := e.In(sqlstore.Tx(x, d)).Emit(t.Context(), mention("m1"))
					require.NoError(t, err)
					require.Len(t, issued, 1)
					code = issued[0].Code
					if kept {
						require.NoError(t, commit())
					} else {
						require.NoError(t, rollback())
					}
					grants, err := e.Grants(t.Context(), "zhang-san", "", true)
					require.NoError(t, err)
					var messages int
					require.NoError(t, db.QueryRow("SELECT count(*) FROM messages").Scan(&messages))
					require.Equal(t, kept, messages == 1)
					require.Len(t, grants, messages)
				}
				_, token, err := e.Redeem(t.Context(), "bookbot", code)
				require.NoError(t, err)
				left := []int{1, 1, 0}
				for i, kept := range []bool{false, true, true} {
					x, insert, commit, rollback := p.begin(t, db, driver, dsn)
					use, err := e.In(sqlstore.Tx(x, d)).Use(t.Context(), token.Reveal(), write)
					require.NoError(t, err)
					require.Equal(t, left[i], use.Left)
					require.NoError(t, insert("the blue one"))
					if kept {
						require.NoError(t, commit())
					} else {
						require.NoError(t, rollback())
					}
				}
				x, insert, commit, _ := p.begin(t, db, driver, dsn)
				_, err = e.In(sqlstore.Tx(x, d)).Use(t.Context(), token.Reveal(), write)
				require.ErrorIs(t, err, grant.ErrUsedUp)
				require.NoError(t, insert("sorry, no more"))
				require.NoError(t, commit())
				var messages int
				require.NoError(t, db.QueryRow("SELECT count(*) FROM messages").Scan(&messages))
				require.Equal(t, 4, messages)
			})
		}
	}
}
