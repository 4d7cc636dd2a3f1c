package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

const defaultDSN = "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"

// postgresDSN is the server that tests use. Without one they skip, but not under CI=true.
func postgresDSN(t testing.TB) string {
	t.Helper()
	dsn := os.Getenv("BEHEST_POSTGRES")
	if dsn == "" {
		dsn = defaultDSN
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err == nil {
		require.NoError(t, conn.Close(ctx))
		return dsn
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
	}
	t.Skipf("no PostgreSQL (BEHEST_POSTGRES, or else %s): %v", defaultDSN, err)
	return ""
}

var schemas atomic.Int64

// newSchema makes a schema of the test's own, dropped when it ends.
func newSchema(t testing.TB, dsn string) string {
	t.Helper()
	name := fmt.Sprintf("behest_test_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), schemas.Add(1))
	admin := openPostgres(t, dsn, "public")
	_, err := admin.Exec("CREATE SCHEMA " + name)
	require.NoError(t, err)
	t.Cleanup(func() {
		db, err := sql.Open("pgx", dsn)
		require.NoError(t, err)
		defer db.Close()
		_, err = db.Exec("SET client_min_messages = error; DROP SCHEMA " + name + " CASCADE")
		require.NoError(t, err)
	})
	return name
}

// openPostgres is one node's handle, under a name by which the server knows it.
func openPostgres(t testing.TB, dsn, schema string, name ...string) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = schema
	for _, n := range name {
		config.RuntimeParams["application_name"] = n
	}
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(12)
	db.SetMaxIdleConns(12)
	t.Cleanup(func() { db.Close() })
	return db
}

// postgresNodes are two nodes on a fresh store, and their databases.
func postgresNodes(t testing.TB, dsn string) (a, b *sql.DB) {
	t.Helper()
	schema := newSchema(t, dsn)
	a, b = openPostgres(t, dsn, schema), openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), a, sqlstore.PostgreSQL))
	return a, b
}

// openSQLite is a handle as a caller with a driver of their own would have it.
func openSQLite(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", sqliteName(path))
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func sqliteName(path string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate"
}

func sqliteNodes(t testing.TB) (a, b *sql.DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	a, b = openSQLite(t, path), openSQLite(t, path)
	require.NoError(t, sqlstore.Migrate(t.Context(), a, sqlstore.SQLite))
	return a, b
}

func newStore(t testing.TB, db *sql.DB, d sqlstore.Dialect) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.New(db, d)
	require.NoError(t, err)
	return s
}

// icuDSN is a database whose collation is ICU's, in which "a" sorts before "B".
func icuDSN(t testing.TB) string {
	t.Helper()
	dsn := postgresDSN(t)
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	admin, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	name := fmt.Sprintf("behest_icu_%d_%d", os.Getpid(), time.Now().UnixNano())
	_, err = admin.Exec("CREATE DATABASE " + name + " TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'")
	if err != nil && strings.Contains(err.Error(), "ICU is not supported") {
		t.Skip("this PostgreSQL is built without ICU")
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		defer admin.Close()
		_, err := admin.Exec("DROP DATABASE " + name + " WITH (FORCE)")
		require.NoError(t, err)
	})
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" { // a DSN of keywords
		return dsn + " dbname=" + name
	}
	require.NotEmpty(t, config.Host)
	u.Path = "/" + name
	return u.String()
}

func applied(t testing.TB, s store.Store, ops ...store.Op) store.Outcome {
	t.Helper()
	out, err := s.Apply(t.Context(), now, ops)
	require.NoError(t, err)
	require.True(t, out.Applied(), "%+v", out)
	return out
}
