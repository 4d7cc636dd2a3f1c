package sqlstore_test

import (
	"database/sql"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// onBoth runs a test on both dialects. open returns a new handle on the one database of the test, which is empty.
func onBoth(t *testing.T, test func(t *testing.T, d sqlstore.Dialect, open func() *sql.DB)) {
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := postgresDSN(t)
		schema := newSchema(t, dsn)
		test(t, sqlstore.PostgreSQL, func() *sql.DB { return openPostgres(t, dsn, schema) })
	})
	t.Run("SQLite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		test(t, sqlstore.SQLite, func() *sql.DB { return openSQLite(t, path) })
	})
}

// migrated is onBoth after Migrate.
func migrated(t *testing.T, test func(t *testing.T, d sqlstore.Dialect, db *sql.DB)) {
	onBoth(t, func(t *testing.T, d sqlstore.Dialect, open func() *sql.DB) {
		db := open()
		require.NoError(t, sqlstore.Migrate(t.Context(), db, d))
		test(t, d, db)
	})
}

func TestMigrateAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, d sqlstore.Dialect, open func() *sql.DB) {
		const nodes = 6
		var dbs [nodes]*sql.DB
		for i := range dbs {
			dbs[i] = open()
		}
		if d == sqlstore.SQLite { // a file that has no journal mode yet is made WAL by one connection: that is Open's business in package sqlite
			require.NoError(t, dbs[0].Ping())
		}
		var ready, done sync.WaitGroup
		ready.Add(nodes)
		var errs [nodes]error
		for i, db := range dbs {
			done.Go(func() {
				ready.Done()
				ready.Wait()
				errs[i] = sqlstore.Migrate(t.Context(), db, d)
			})
		}
		done.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		for i, db := range dbs {
			require.NoError(t, sqlstore.Migrate(t.Context(), db, d), "again")
			out, err := newStore(t, db, d).Apply(t.Context(), now, []store.Op{store.Spend("t", "a.1", 1, &store.Record{Left: 100})})
			require.NoError(t, err)
			require.Equal(t, store.Outcome{Left: int64(99 - i)}, out)
		}
		var rows int
		require.NoError(t, dbs[0].QueryRow("SELECT count(*) FROM behest_schema").Scan(&rows))
		require.Equal(t, 1, rows)
	})
}

func TestMigrateRefuses(t *testing.T) {
	for _, c := range []struct{ name, change, want string }{
		{"a schema from the future", "UPDATE behest_schema SET version = 99", "the schema is of version 99, which a later release has made"},
		{"a schema of no release", "UPDATE behest_schema SET version = -1", "behest_schema is corrupt"},
		{"two versions", "INSERT INTO behest_schema (version) VALUES (0)", "behest_schema is corrupt"},
		{"a version without its tables", "DELETE FROM behest_schema", "step 1 to version 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
				s := newStore(t, db, d)
				applied(t, s, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 7}))
				_, err := db.Exec(c.change)
				require.NoError(t, err)
				err = sqlstore.Migrate(t.Context(), db, d)
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, "sqlstore: "+d.String()+": migrate")
				got, err := s.Get(t.Context(), "t", "a.1")
				require.NoError(t, err)
				require.Equal(t, int64(7), got[0].Left, "something was changed")
			})
		})
	}
}

func TestMigrateFails(t *testing.T) {
	require.ErrorContains(t, sqlstore.Migrate(t.Context(), nil, sqlstore.SQLite), "no database")
	require.ErrorContains(t, sqlstore.Migrate(t.Context(), openSQLite(t, filepath.Join(t.TempDir(), "db")), 0), "Dialect(0) is no dialect")
	require.ErrorContains(t, sqlstore.Migrate(t.Context(), openSQLite(t, filepath.Join(t.TempDir(), "missing", "db")), sqlstore.SQLite), "sqlstore: SQLite:")
}

func TestNotMigrated(t *testing.T) {
	onBoth(t, func(t *testing.T, d sqlstore.Dialect, open func() *sql.DB) {
		_, err := newStore(t, open(), d).Apply(t.Context(), now, []store.Op{store.Check("t", "a.1", 0)})
		require.ErrorContains(t, err, "sqlstore: "+d.String()+": apply 1 operations in aggregate \"a\"")
		_, err = newStore(t, open(), d).List(t.Context(), store.Query{Kind: "t"})
		require.ErrorContains(t, err, "behest_records")
	})
}
