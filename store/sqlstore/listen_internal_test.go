package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
)

func pgxNext(ctx context.Context, conn any) (string, error) {
	n, err := conn.(*stdlib.Conn).Conn().WaitForNotification(ctx)
	if err != nil {
		return "", err
	}
	return n.Payload, nil
}

// heard runs a Listen until the test ends, and waits until it listens.
func heard(t *testing.T, l *Listener) (told chan string, ended chan error) {
	t.Helper()
	told, ended = make(chan string, 10_000), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- l.Listen(ctx, func(app string) { told <- app })
	}()
	t.Cleanup(func() { cancel(); <-done })
	require.Empty(t, next(t, told))
	return told, ended
}

func next(t *testing.T, told chan string) string {
	t.Helper()
	select {
	case app := <-told:
		return app
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is told")
		return ""
	}
}

var moment = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

func put(id, app string, due time.Time) store.Op {
	return store.Put(store.Record{Kind: "push", ID: id, App: app, Due: due})
}

func do(t *testing.T, s store.Store, ops ...store.Op) store.Outcome {
	t.Helper()
	out, err := s.Apply(t.Context(), moment, ops)
	require.NoError(t, err)
	return out
}

func TestListen(t *testing.T) {
	server := servers.StartPostgres(t, "fsync=off")
	admin, err := sql.Open("pgx", servers.DSN(server.Addr()))
	require.NoError(t, err)
	defer admin.Close()
	node := func(schema string) *sql.DB {
		_, err := admin.Exec("CREATE SCHEMA IF NOT EXISTS " + schema)
		require.NoError(t, err)
		db, err := sql.Open("pgx", servers.DSN(server.Addr())+"&search_path="+schema)
		require.NoError(t, err)
		t.Cleanup(func() { db.Close() })
		require.NoError(t, Migrate(t.Context(), db, PostgreSQL))
		return db
	}
	a, b, other := node("one"), node("one"), node("two")
	s, err := New(a, PostgreSQL)
	require.NoError(t, err)
	far, err := New(other, PostgreSQL)
	require.NoError(t, err)
	told, _ := heard(t, NewListener(b, pgxNext))

	t.Run("what is due and nothing else", func(t *testing.T) {
		do(t, s, store.Put(store.Record{Kind: "token", ID: "a.t", Left: 9}))
		use := []store.Op{store.Check("revocation", "a.1", 0), store.Check("revocation", "a.2", 0), store.Check("revocation", "a.3", 0),
			store.Spend("token", "a.t", 1, nil), store.Put(store.Record{Kind: "ledger", ID: "a.l", App: "app"})}
		require.True(t, do(t, s, use...).Applied())
		do(t, s, put("a.later", "app", moment.Add(time.Microsecond)))
		do(t, s, store.Spend("window", "a.w", 1, &store.Record{App: "app", Due: moment, Left: 5}))
		require.False(t, do(t, s, put("a.refused", "app", moment), store.Check("push", "a.later", 0)).Applied())
		do(t, far, put("a.1", "another schema's", moment))

		odd := "\\odd \x00\xff"
		do(t, s, put("a.1", "first", moment), put("a.2", odd, moment.Add(-time.Hour)), put("a.3", "", moment), put("a.4", strings.Repeat("\xff", store.MaxKey), moment))
		require.Equal(t, []string{"first", odd, "", strings.Repeat("\xff", store.MaxKey)}, []string{next(t, told), next(t, told), next(t, told), next(t, told)})
		r := put("a.later", "again", moment).Record
		r.Version = 1
		do(t, s, store.Put(r))
		require.Equal(t, "again", next(t, told))
		use[4] = put("a.5", "shaped like a use", moment)
		require.True(t, do(t, s, use...).Applied())
		require.Equal(t, "shaped like a use", next(t, told))
	})
	t.Run("with the caller's commit", func(t *testing.T) {
		for _, commit := range []bool{false, true} {
			tx, err := a.Begin()
			require.NoError(t, err)
			do(t, Tx(tx, PostgreSQL), put("b.1", fmt.Sprint(commit), moment))
			do(t, s, put(fmt.Sprint("c.", commit), "meanwhile", moment))
			require.Equal(t, "meanwhile", next(t, told))
			if commit {
				require.NoError(t, tx.Commit())
				require.Equal(t, "true", next(t, told))
			} else {
				require.NoError(t, tx.Rollback())
			}
		}
	})
	t.Run("while somebody listens", func(t *testing.T) {
		conn, err := b.Conn(t.Context())
		require.NoError(t, err)
		defer conn.Close()
		var id int64
		require.NoError(t, conn.QueryRowContext(t.Context(), "SELECT 'behest_records'::regclass::oid::bigint").Scan(&id))
		_, err = conn.ExecContext(t.Context(), fmt.Sprint("LISTEN behest_", id))
		require.NoError(t, err)
		for _, row := range [][2]string{{"nobody", "now()"}, {"somebody", "now() + interval '1 hour'"}} {
			_, err = a.Exec("UPDATE behest_listening SET until = " + row[1])
			require.NoError(t, err)
			do(t, s, put("l."+row[0], row[0], moment))
		}
		require.NoError(t, conn.Raw(func(c any) error {
			app, err := pgxNext(t.Context(), c)
			require.Equal(t, "somebody", app)
			return err
		}))
		require.Equal(t, "somebody", next(t, told))
		// Renewing never makes it less.
		var left float64
		_, _ = heard(t, NewListener(b, pgxNext))
		require.NoError(t, a.QueryRow("SELECT extract(epoch FROM until - now()) FROM behest_listening").Scan(&left))
		require.Greater(t, left, 3000.0)
	})
	t.Run("in silence", func(t *testing.T) {
		l := NewListener(b, pgxNext)
		l.renewal = 20 * time.Millisecond
		waits := make(chan struct{}, 1000)
		l.next = func(ctx context.Context, conn any) (string, error) {
			waits <- struct{}{}
			return pgxNext(ctx, conn)
		}
		told, _ := heard(t, l)
		for range 5 {
			<-waits
		}
		do(t, s, put("d.1", "after silence", moment))
		require.Equal(t, "after silence", next(t, told))
	})
	t.Run("until it is told to end", func(t *testing.T) {
		before := b.Stats().OpenConnections
		ctx, cancel := context.WithCancel(t.Context())
		err := NewListener(b, pgxNext).Listen(ctx, func(string) { cancel() })
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "sqlstore: PostgreSQL: listen: ")
		require.LessOrEqual(t, b.Stats().OpenConnections, before, "a connection that listens goes back to the others")
		require.ErrorIs(t, NewListener(b, pgxNext).Listen(ctx, func(string) { t.Error("told") }), context.Canceled)
	})
	t.Run("of a server that goes and comes", func(t *testing.T) {
		_, ended := heard(t, NewListener(b, pgxNext))
		server.Kill()
		err := <-ended
		require.ErrorContains(t, err, "sqlstore: PostgreSQL: listen: ")
		require.ErrorContains(t, NewListener(b, pgxNext).Listen(t.Context(), func(string) { t.Error("told") }), "sqlstore: PostgreSQL: listen: ")
		server.Start()
		var again chan string
		require.Eventually(t, func() bool { return b.Ping() == nil }, 20*time.Second, 10*time.Millisecond)
		again, _ = heard(t, NewListener(b, pgxNext))
		require.Eventually(t, func() bool { return a.Ping() == nil }, 20*time.Second, 10*time.Millisecond)
		do(t, s, put("e.1", "back", moment))
		require.Equal(t, "back", next(t, again))
	})
	t.Run("of nothing", func(t *testing.T) {
		unmigrated := admin
		for _, l := range []*Listener{NewListener(nil, pgxNext), NewListener(b, nil), NewListener(unmigrated, pgxNext),
			NewListener(b, func(context.Context, any) (string, error) { return "", errors.New("no such driver") })} {
			require.ErrorContains(t, l.Listen(t.Context(), func(string) {}), "sqlstore: PostgreSQL: listen: ")
		}
	})
}
