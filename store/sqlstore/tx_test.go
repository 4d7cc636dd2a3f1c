package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

func begin(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func message(t testing.TB, x sqlstore.Execer, text string) {
	t.Helper()
	_, err := x.ExecContext(t.Context(), "INSERT INTO messages (text) VALUES ('"+text+"')")
	require.NoError(t, err)
}

func messages(t testing.TB, db *sql.DB) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM messages").Scan(&n))
	return n
}

func withMessages(t *testing.T, test func(t *testing.T, d sqlstore.Dialect, db *sql.DB, s *sqlstore.Store)) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		_, err := db.Exec("CREATE TABLE messages (text text)")
		require.NoError(t, err)
		test(t, d, db, newStore(t, db, d))
	})
}

func TestTxIsTheCallers(t *testing.T) {
	withMessages(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB, s *sqlstore.Store) {
		grant := store.Put(store.Record{Kind: "grant", ID: "a.g1", Owner: "zhang-san", Due: now, NotAfter: now.Add(time.Hour), Left: 3})
		tx := begin(t, db)
		message(t, tx, "lost")
		applied(t, sqlstore.Tx(tx, d), grant)
		require.NoError(t, tx.Rollback())
		require.Zero(t, messages(t, db))
		got, err := s.Get(t.Context(), "grant", "a.g1")
		require.NoError(t, err)
		require.Empty(t, got)

		tx = begin(t, db)
		in := sqlstore.Tx(tx, d)
		message(t, tx, "kept")
		applied(t, in, grant)
		got, err = in.Get(t.Context(), "grant", "a.g1")
		require.NoError(t, err)
		require.Len(t, got, 1, "the transaction does not see its own write")
		got, err = in.Claim(t.Context(), store.Query{Kind: "grant", DueBy: now}, now.Add(time.Minute))
		require.NoError(t, err)
		require.Len(t, got, 1)
		n, err := in.Purge(t.Context(), "grant", now, 10)
		require.NoError(t, err)
		require.Zero(t, n)
		require.NoError(t, tx.Commit())
		require.Equal(t, 1, messages(t, db))
		got, err = s.List(t.Context(), store.Query{Kind: "grant"})
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, uint64(2), got[0].Version)
	})
}

func TestRefusalDoesNotPoison(t *testing.T) {
	withMessages(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB, s *sqlstore.Store) {
		applied(t, s, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 1}), store.Put(store.Record{Kind: "t", ID: "a.2", NotAfter: now, Left: 1}), store.Put(store.Record{Kind: "t", ID: "a.3"}))
		tx := begin(t, db)
		in := sqlstore.Tx(tx, d)
		message(t, tx, "before")
		for _, c := range []struct {
			op   store.Op
			want store.Reason
		}{
			{store.Put(store.Record{Kind: "t", ID: "a.1"}), store.Conflict},
			{store.Put(store.Record{Kind: "t", ID: "a.9", Version: 4}), store.Conflict},
			{store.Delete("t", "a.1", 9), store.Conflict},
			{store.Check("t", "a.1", 0), store.Conflict},
			{store.Spend("t", "a.9", 1, nil), store.Missing},
			{store.Spend("t", "a.2", 1, nil), store.Expired},
			{store.Spend("t", "a.3", 1, nil), store.Exhausted},
		} {
			out, err := in.Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "l", ID: "a.1"}), c.op})
			require.NoError(t, err)
			require.Equal(t, c.want, out.Reason)
			require.Equal(t, 1, out.Op)
		}
		_, err := in.Apply(t.Context(), now, nil)
		require.ErrorIs(t, err, store.ErrInvalid)
		message(t, tx, "after")
		applied(t, in, store.Spend("t", "a.1", 1, nil))
		require.NoError(t, tx.Commit())
		require.Equal(t, 2, messages(t, db))
		got, err := s.Get(t.Context(), "l", "a.1")
		require.NoError(t, err)
		require.Empty(t, got)
	})
}

func TestTxOfNothing(t *testing.T) {
	for _, s := range []store.Store{sqlstore.Tx(nil, sqlstore.SQLite), sqlstore.Tx(openSQLite(t, t.TempDir()+"/db"), 0), sqlstore.Tx(openSQLite(t, t.TempDir()+"/db"), 9)} {
		_, err := s.Get(t.Context(), "t", "a")
		require.Error(t, err)
		_, err = s.List(t.Context(), store.Query{Kind: "t"})
		require.Error(t, err)
		_, err = s.Apply(t.Context(), now, []store.Op{store.Check("t", "a", 0)})
		require.Error(t, err)
		_, err = s.Claim(t.Context(), store.Query{Kind: "t", DueBy: now}, now)
		require.Error(t, err)
		_, err = s.Purge(t.Context(), "t", now, 1)
		require.Error(t, err)
	}
	_, err := sqlstore.New(nil, sqlstore.SQLite)
	require.Error(t, err)
	_, err = sqlstore.New(openSQLite(t, t.TempDir()+"/db"), 3)
	require.ErrorContains(t, err, "Dialect(3) is no dialect")
}

// Another isolation would look at a past without revocations. It is an answer, not a failed statement.
func TestIsolation(t *testing.T) {
	db, _ := postgresNodes(t, postgresDSN(t))
	for _, level := range []sql.IsolationLevel{sql.LevelRepeatableRead, sql.LevelSerializable} {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
		require.NoError(t, err)
		_, err = sqlstore.Tx(tx, sqlstore.PostgreSQL).Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "t", ID: "a.1"})})
		require.ErrorContains(t, err, "must be READ COMMITTED")
		require.NoError(t, tx.QueryRow("SELECT 1").Scan(new(int)))
		require.NoError(t, tx.Commit())
	}
	got, err := newStore(t, db, sqlstore.PostgreSQL).List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	require.Empty(t, got)
}

// waiting blocks until so many connections of that name wait for a lock.
func waiting(t testing.TB, db *sql.DB, application string, n int) {
	t.Helper()
	active(t, db, application, "Lock", n)
}

// active blocks until there are so many connections of that name, in such a wait if it is not empty.
func active(t testing.TB, db *sql.DB, application, wait string, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var got int
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND ($2 = '' OR wait_event_type = $2)", application, wait).Scan(&got))
		if got == n {
			return
		}
		require.True(t, time.Now().Before(deadline), "there are %d, want %d", got, n)
	}
}

// A use that arrives while a revocation is on its way waits for it, and then sees it: it does not decide by what it saw before it waited. And the other way round.
func TestRevocationAndUseDoNotPass(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	db := openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s := newStore(t, db, sqlstore.PostgreSQL)
	users := openPostgres(t, dsn, schema, schema)
	other := newStore(t, users, sqlstore.PostgreSQL)
	for _, present := range []bool{false, true} { // the revocation's record is there already, or is made
		account := fmt.Sprint("a", present)
		version := uint64(0)
		if present {
			applied(t, s, store.Put(store.Record{Kind: "revocation", ID: account + ".all"}))
			version = 1
		}
		applied(t, s, token(account, 100))
		uses := use(account, 1)
		uses[0] = store.Check("revocation", account+".all", version)

		tx := begin(t, db)
		applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), store.Put(store.Record{Kind: "revocation", ID: account + ".all", Version: version}))
		var got sync.WaitGroup
		var outcomes [4]store.Outcome
		var errs [4]error
		for i := range outcomes {
			got.Go(func() { outcomes[i], errs[i] = other.Apply(t.Context(), now, uses) })
		}
		waiting(t, db, schema, len(outcomes))
		require.NoError(t, tx.Commit())
		got.Wait()
		for i := range outcomes {
			require.NoError(t, errs[i])
			require.Equal(t, store.Outcome{Reason: store.Conflict, Version: version + 1}, outcomes[i])
		}
		got2, err := s.Get(t.Context(), "token", account+".g5f0c1a2")
		require.NoError(t, err)
		require.Equal(t, int64(100), got2[0].Left)

		// A use on its way holds up the revocation: when that is acknowledged, nothing is still to come.
		uses[0] = store.Check("revocation", account+".all", version+1)
		tx = begin(t, db)
		applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), uses...)
		done := make(chan error, 1)
		go func() {
			out, err := other.Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "revocation", ID: account + ".all", Version: version + 1})})
			if err == nil && !out.Applied() {
				err = fmt.Errorf("%+v", out)
			}
			done <- err
		}()
		waiting(t, db, schema, 1)
		require.NoError(t, tx.Commit())
		require.NoError(t, <-done)
	}
}

// Uses race with a revocation from several nodes. Those that were done wrote the version they saw; none of them may come after the revocation.
func TestRevocationRacesUses(t *testing.T) {
	dsn := postgresDSN(t)
	a, b := postgresNodes(t, dsn)
	for round := range 20 {
		account := fmt.Sprint("a", round)
		stores := []*sqlstore.Store{newStore(t, a, sqlstore.PostgreSQL), newStore(t, b, sqlstore.PostgreSQL)}
		applied(t, stores[0], token(account, 1<<30))
		var revoked atomic.Bool
		var left atomic.Int64
		var done sync.WaitGroup
		for w := range 6 {
			done.Go(func() {
				for i := range int64(200) {
					after := revoked.Load()
					out, err := stores[w%2].Apply(context.Background(), now, use(account, int64(w)<<20+i))
					if err != nil {
						t.Error(err)
						return
					}
					if !out.Applied() {
						return
					}
					if after {
						t.Error("used after the revocation was acknowledged")
						return
					}
				}
			})
		}
		done.Go(func() {
			// Revoke, and read what is left in the same transaction: nothing may be spent after it.
			out, err := stores[1].Apply(context.Background(), now, []store.Op{store.Spend("token", account+".g5f0c1a2", 1, nil), store.Put(store.Record{Kind: "revocation", ID: account + ".all"})})
			if err != nil || !out.Applied() {
				t.Error(out, err)
			}
			left.Store(out.Left)
			revoked.Store(true)
		})
		done.Wait()
		got, err := stores[0].Get(t.Context(), "token", account+".g5f0c1a2")
		require.NoError(t, err)
		require.Equal(t, left.Load(), got[0].Left, "spent behind the revocation")
	}
}
