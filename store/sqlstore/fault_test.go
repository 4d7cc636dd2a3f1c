package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// What operators ask.
func TestColumnsAreReadable(t *testing.T) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		s := newStore(t, db, d)
		applied(t, s, store.Put(store.Record{Kind: "token", ID: "a.g1", Owner: "zhang-san", App: "bookbot", NotAfter: now.Add(time.Hour), Left: 3, Data: []byte(`{"n":1}`)}))
		applied(t, s, store.Put(store.Record{Kind: "token", ID: "b.g2", Owner: "张三", Due: now}))
		var kind, id, app, notAfter string
		var due sql.NullString
		var left int64
		ask := "SELECT kind, id, app, left_uses, CAST(not_after AS text), CAST(due AS text) FROM behest_records WHERE owner = 'zhang-san' AND not_after > '2031-05-06 08:00:00'"
		if d == sqlstore.PostgreSQL {
			_, err := db.Exec("SET TIME ZONE 'UTC'")
			require.NoError(t, err)
			db.SetMaxOpenConns(1)
			ask = strings.ReplaceAll(ask, "not_after AS text", "not_after AT TIME ZONE 'UTC' AS text")
			ask = strings.ReplaceAll(ask, "08:00:00'", "08:00:00Z'")
			var n int
			require.NoError(t, db.QueryRow("SELECT convert_from(data, 'UTF8')::jsonb->'n' FROM behest_records WHERE owner = 'zhang-san'").Scan(&n))
			require.Equal(t, 1, n)
		}
		require.NoError(t, db.QueryRow(ask).Scan(&kind, &id, &app, &left, &notAfter, &due))
		require.Equal(t, []string{"token", "a.g1", "bookbot", "2031-05-06 08:08:09.123456"}, []string{kind, id, app, notAfter})
		require.Equal(t, int64(3), left)
		require.False(t, due.Valid)
		require.NoError(t, db.QueryRow("SELECT id FROM behest_records WHERE owner = '张三' AND not_after IS NULL").Scan(&id))
		require.Equal(t, "b.g2", id)
	})
}

// The largest of everything, in bytes that take most room: indexes have limits of their own.
func TestLargestKeys(t *testing.T) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		s := newStore(t, db, d)
		for _, fill := range []string{"\x00", "\x01", "\xff", "\\", "a", "\"", "é"} {
			long := strings.Repeat(fill, store.MaxKey/len(fill))
			r := store.Record{Kind: strings.Repeat(fill, 32/len(fill)), ID: long, Owner: long, App: long, Due: now, NotAfter: now}
			applied(t, s, store.Put(r))
			applied(t, s, store.Check(r.Kind, r.ID, 1))
			r.Version = 1
			for _, q := range []store.Query{{}, {Owner: long}, {App: long}, {Owner: long, App: long, Prefix: long[:1000], DueBy: now}, {NotApps: []string{"x", long[1:]}}} {
				q.Kind = r.Kind
				got, err := s.List(t.Context(), q)
				require.NoError(t, err)
				require.Equal(t, []store.Record{r}, got)
			}
			got, err := s.Claim(t.Context(), store.Query{Kind: r.Kind, App: long, DueBy: now}, now)
			require.NoError(t, err)
			require.Len(t, got, 1)
			n, err := s.Purge(t.Context(), r.Kind, now.Add(1000), 5)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		}
	})
}

func TestTimesBeyondTheColumns(t *testing.T) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		s := newStore(t, db, d)
		far, early := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)
		for _, at := range []time.Time{far, early} {
			for _, op := range []store.Op{
				store.Put(store.Record{Kind: "t", ID: "a.1", NotAfter: at}), store.Put(store.Record{Kind: "t", ID: "a.1", Due: at}), store.Spend("t", "a.1", 1, &store.Record{NotAfter: at}),
			} {
				_, err := s.Apply(t.Context(), now, []store.Op{op})
				require.ErrorIs(t, err, store.ErrInvalid)
			}
			_, err := s.Claim(t.Context(), store.Query{Kind: "t", DueBy: now}, at)
			require.ErrorIs(t, err, store.ErrInvalid)
		}
		last := far.Add(-time.Microsecond)
		applied(t, s, store.Put(store.Record{Kind: "t", ID: "a.1", NotAfter: last, Due: last, Left: 1}))
		for at, want := range map[time.Time]store.Reason{far: store.Expired, early: 0} {
			out, err := s.Apply(t.Context(), at, []store.Op{store.Spend("t", "a.1", 0, nil)})
			require.NoError(t, err)
			require.Equal(t, want, out.Reason)
		}
		got, err := s.List(t.Context(), store.Query{Kind: "t", DueBy: early})
		require.NoError(t, err)
		require.Empty(t, got)
		got, err = s.Claim(t.Context(), store.Query{Kind: "t", DueBy: far}, last)
		require.NoError(t, err)
		require.Len(t, got, 1)
		n, err := s.Purge(t.Context(), "t", early, 5)
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = s.Purge(t.Context(), "t", far, 5)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

// A record that cannot be one is an error that names it.
func TestCorruptRecord(t *testing.T) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		db.SetMaxOpenConns(1) // what follows is said to one connection
		s := newStore(t, db, d)
		loosen := []string{"PRAGMA ignore_check_constraints = 1"}
		if d == sqlstore.PostgreSQL {
			loosen = []string{"ALTER TABLE behest_records DROP CONSTRAINT behest_records_version_check", "ALTER TABLE behest_records DROP CONSTRAINT behest_records_left_uses_check"}
		}
		for _, statement := range loosen {
			_, err := db.Exec(statement)
			require.NoError(t, err)
		}
		damage := map[string]string{"version = -1": "version is -1", "left_uses = -4": "left_uses is -4", "owner = '\\ÿā'": "not the text of bytes"}
		if d == sqlstore.SQLite {
			damage["due = 'soon'"] = "soon"
			damage["not_after = '2031-05-06'"] = "2031-05-06"
		} else {
			damage["due = 'infinity'"] = "due"
		}
		for change, want := range damage {
			applied(t, s, store.Put(store.Record{Kind: "t", ID: "a.1", Due: now, NotAfter: now.Add(time.Hour), Left: 4}))
			_, err := db.Exec("UPDATE behest_records SET " + change)
			require.NoError(t, err)
			_, get := s.Get(t.Context(), "t", "a.1")
			_, list := s.List(t.Context(), store.Query{Kind: "t"})
			for _, err := range []error{get, list} {
				require.ErrorContains(t, err, `the record of kind "t" with id "a.1" is corrupt`)
				require.ErrorContains(t, err, want)
				require.ErrorContains(t, err, "sqlstore: "+d.String())
			}
			out, err := s.Apply(t.Context(), now, []store.Op{store.Check("t", "a.1", 5)})
			if strings.Contains(change, "version") || strings.Contains(change, "left") {
				require.ErrorContains(t, err, `the record of kind "t" with id "a.1" is corrupt`, "%+v", out)
			}
			_, err = db.Exec("DELETE FROM behest_records")
			require.NoError(t, err)
		}
	})
}

// While another holds the aggregate, a call ends when its context does, says what it was, and has done nothing.
func TestDeadline(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	db := openPostgres(t, dsn, schema, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s := newStore(t, db, sqlstore.PostgreSQL)
	applied(t, s, token("a", 5))
	tx := begin(t, db)
	applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), store.Check("t", "a.1", 0))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Apply(ctx, now, use("a", 1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, `sqlstore: PostgreSQL: apply 5 operations in aggregate "a"`)
	// The driver tells the server that nobody waits any more, behind the caller's back. As long as the server has not heard it, letting go of the
	// aggregate would let the call happen after all.
	require.Eventually(t, func() bool {
		var waiting int
		err := db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE '%behest_apply%' AND application_name = $1", schema).Scan(&waiting)
		return err == nil && waiting == 0
	}, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, tx.Rollback())
	require.Equal(t, int64(4), applied(t, s, use("a", 2)...).Left)
}

// A deadline that passes while a connection is made is the socket's first, and the context's a moment later.
func TestDeadlineWhileConnecting(t *testing.T) {
	db := openPostgres(t, postgresDSN(t), "public")
	db.SetMaxIdleConns(0)
	s := newStore(t, db, sqlstore.PostgreSQL)
	for i := range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+i)*time.Microsecond)
		_, err := s.Get(ctx, "t", "a") // to start a process for the connection takes PostgreSQL longer than that
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
}

// A server that does not answer costs a caller no more than the time it has.
func TestServerThatIsAway(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	require.NoError(t, err)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	defer silent.Close()
	for _, address := range []string{silent.Addr().String(), gone.Addr().String()} {
		db := openPostgres(t, "postgres://postgres@"+address+"/test?sslmode=disable", "public")
		s := newStore(t, db, sqlstore.PostgreSQL)
		for what, call := range map[string]func(ctx context.Context) error{
			"apply 5 operations": func(ctx context.Context) error { _, err := s.Apply(ctx, now, use("a", 1)); return err },
			"get 1 of kind":      func(ctx context.Context) error { _, err := s.Get(ctx, "t", "a.1"); return err },
			"list kind":          func(ctx context.Context) error { _, err := s.List(ctx, store.Query{Kind: "t"}); return err },
			"claim of kind": func(ctx context.Context) error {
				_, err := s.Claim(ctx, store.Query{Kind: "t", DueBy: now}, now)
				return err
			},
			"purge of kind": func(ctx context.Context) error { _, err := s.Purge(ctx, "t", now, 1); return err },
			"migrate":       func(ctx context.Context) error { return sqlstore.Migrate(ctx, db, sqlstore.PostgreSQL) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			err := call(ctx)
			cancel()
			require.ErrorContains(t, err, "sqlstore: PostgreSQL: "+what)
			if address == silent.Addr().String() {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
		}
	}
}

// A connection that breaks between two calls is not the end: the next call gets another.
func TestConnectionIsCut(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	admin, db := openPostgres(t, dsn, schema), openPostgres(t, dsn, schema, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s := newStore(t, db, sqlstore.PostgreSQL)
	applied(t, s, token("a", 1000))
	done := 0
	for i := range int64(60) {
		if i%10 == 9 {
			_, err := admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", schema)
			require.NoError(t, err)
		}
		out, err := s.Apply(t.Context(), now, use("a", i))
		if err == nil && out.Applied() {
			done++
		} else {
			require.ErrorContains(t, err, "sqlstore: PostgreSQL: apply")
		}
	}
	require.GreaterOrEqual(t, done, 50)
	got, err := s.List(t.Context(), store.Query{Kind: "ledger", Limit: store.MaxPage})
	require.NoError(t, err)
	left, err := s.Get(t.Context(), "token", "a.g5f0c1a2")
	require.NoError(t, err)
	require.Equal(t, int64(1000-len(got)), left[0].Left)
	require.GreaterOrEqual(t, len(got), done)
	require.False(t, errors.Is(err, store.ErrInvalid))
}
