package authz_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// A shared is a store as two servers have it, and effects beside it.
type shared struct {
	nodes [2]store.Store
	dbs   [2]*sql.DB // nil: no transactions
	d     sqlstore.Dialect
	mu    sync.Mutex
	done  []string     // effects, without transactions
	log   lockedBuffer // of all servers
}

// errRolledBack is a transaction that the handler gave up.
var errRolledBack = errors.New("rolled back by the test")

// do spends and has the effect: in one transaction, where there are transactions.
func (s *shared) do(ctx context.Context, node int, d *authz.Delegation, effect string, giveUp bool) error {
	db := s.dbs[node]
	if db == nil {
		err := d.Spend(ctx, nil)
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.done = append(s.done, effect)
		}
		return err
	}
	return inTx(ctx, db, func(tx *sql.Tx) error {
		if err := d.Spend(ctx, sqlstore.Tx(tx, s.d)); err != nil {
			// A refusal leaves the transaction as it was.
			if _, failed := tx.ExecContext(ctx, "INSERT INTO effects (id) VALUES ('of a transaction that is rolled back')"); grant.Reason(err) != "" && failed != nil {
				return fmt.Errorf("the transaction is poisoned: %w", failed)
			}
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO effects (id) VALUES ('"+effect+"')"); err != nil {
			return err
		}
		if giveUp {
			return errRolledBack
		}
		return nil
	})
}

func (s *shared) effects(t testing.TB) []string {
	t.Helper()
	if s.dbs[0] == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.done
	}
	return texts(t, s.dbs[0], "SELECT id FROM effects ORDER BY id")
}

func texts(t testing.TB, db *sql.DB, query string) (out []string) {
	t.Helper()
	rows, err := db.Query(query)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var s string
		require.NoError(t, rows.Scan(&s))
		out = append(out, s)
	}
	require.NoError(t, rows.Err())
	return out
}

// onStores runs a test on every store, with the effect beside the use.
func onStores(t *testing.T, f func(t *testing.T, s *shared)) {
	stores.Each(t, func(t *testing.T, m stores.Maker) {
		node := m.New(t)
		f(t, &shared{nodes: [2]store.Store{node(), node()}})
	})
}

// inTransactions runs a test on every store that has transactions, with the effect in that of the use.
func inTransactions(t *testing.T, f func(t *testing.T, s *shared)) {
	t.Run("sqlite in transactions", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		f(t, sharedSQL(t, sqlstore.SQLite, openSQLite(t, path), openSQLite(t, path)))
	})
	t.Run("postgresql in transactions", func(t *testing.T) {
		dsn := postgresSchema(t)
		f(t, sharedSQL(t, sqlstore.PostgreSQL, openPostgres(t, dsn), openPostgres(t, dsn)))
	})
}

func sharedSQL(t testing.TB, d sqlstore.Dialect, dbs ...*sql.DB) *shared {
	t.Helper()
	require.NoError(t, sqlstore.Migrate(t.Context(), dbs[0], d))
	_, err := dbs[0].Exec("CREATE TABLE effects (id text PRIMARY KEY)")
	require.NoError(t, err)
	s := &shared{d: d}
	for i, db := range dbs {
		s.dbs[i] = db
		s.nodes[i], err = sqlstore.New(db, d)
		require.NoError(t, err)
	}
	return s
}

func openSQLite(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", sqliteName(path))
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(4)
	return db
}

func sqliteName(path string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=busy_timeout(30000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate"
}

// postgresSchema names a schema of the test's own, dropped when it ends.
func postgresSchema(t testing.TB) (dsn string) {
	t.Helper()
	dsn = os.Getenv("BEHEST_POSTGRES")
	if dsn == "" {
		dsn = "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	admin, err := pgx.Connect(ctx, dsn)
	const missing = "no PostgreSQL (BEHEST_POSTGRES, or else on 127.0.0.1:5432): %v"
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf(missing, err)
	} else if err != nil {
		t.Skipf(missing, err)
	}
	name := fmt.Sprintf("behest_once_%d_%d", os.Getpid(), time.Now().UnixNano())
	_, err = admin.Exec(ctx, "CREATE SCHEMA "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "SET client_min_messages = error; DROP SCHEMA "+name+" CASCADE")
		require.NoError(t, err)
		require.NoError(t, admin.Close(context.Background()))
	})
	if !strings.Contains(dsn, "://") {
		return dsn + " search_path=" + name
	}
	if strings.Contains(dsn, "?") {
		return dsn + "&search_path=" + name
	}
	return dsn + "?search_path=" + name
}

func openPostgres(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	db := stdlib.OpenDB(*config)
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(6)
	db.SetMaxIdleConns(6)
	return db
}

// servers are two that share the store, and a token of so many uses.
func (s *shared) servers(t *testing.T, uses int) (nodes [2]*authz.Server, token string) {
	t.Helper()
	for i := range nodes {
		one, _ := bubble(t, 1, func(c *authz.Config) {
			c.Store, c.Triggers[0].Uses, c.Log = s.nodes[i], uses, slog.New(slog.NewTextHandler(&s.log, nil))
		})
		nodes[i] = one[0]
	}
	issued, err := nodes[0].Emit(t.Context(), bubbleMention("m1"))
	require.NoError(t, err)
	require.Len(t, issued, 1)
	_, secret, err := nodes[1].Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
	require.NoError(t, err)
	return nodes, secret.Reveal()
}

func used(t *testing.T, az *authz.Server, token string) (uses, entries int) {
	t.Helper()
	d, err := az.Engine().Inspect(t.Context(), grant.NewSecret(token))
	if !errors.Is(err, grant.ErrUsedUp) {
		require.NoError(t, err)
		uses = d.Uses - d.Left
	} else {
		uses = -1 // all
	}
	list, err := az.Engine().Ledger(t.Context(), "zhang-san", "", 1000)
	require.NoError(t, err)
	for _, e := range list {
		if e.What == "used" {
			entries++
		}
	}
	return uses, entries
}

func withToken(token, key, body string) *http.Request {
	r := httptest.NewRequest("POST", "/groups/42/messages", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return r
}

// P3 Counted: sixty-four requests with one Idempotency-Key, on two servers, are carried out once; all others get its answer,
// or are told to wait.
func TestP3IdempotencyKey(t *testing.T) {
	onStores(t, testP3IdempotencyKey)
	inTransactions(t, testP3IdempotencyKey)
}

func testP3IdempotencyKey(t *testing.T, s *shared) {
	nodes, token := s.servers(t, 5)
	for _, options := range [][]authz.Option{nil, {authz.SpendInHandler}} {
		inHandler := options != nil
		key := fmt.Sprint("key-", inHandler)
		others, first := make(chan struct{}), sync.Once{}
		var handlers [2]http.Handler
		for i, az := range nodes {
			handlers[i] = az.Require("group:42/message.write", options...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				d, _ := authz.FromContext(r.Context())
				if inHandler {
					if err := s.do(r.Context(), i, d, key, false); err != nil {
						authz.Refuse(w, r, err)
						return
					}
				}
				<-others // so that somebody asks while it is under way
				w.WriteHeader(http.StatusCreated)
				_, _ = fmt.Fprint(w, "left ", d.Left)
			}))
		}
		counts := at64(func(i int) string {
			rec := serve(handlers[i%2], withToken(token, key, "hello"))
			if rec.Code == 409 {
				first.Do(func() { close(others) })
			}
			return fmt.Sprint(rec.Code, " ", reasonOf(t, rec), rec.Header().Get("Idempotency-Replayed"), " ", strings.HasPrefix(rec.Body.String(), "left "))
		})
		require.Equal(t, 1, counts["201  true"], "%v", counts)
		require.Positive(t, counts["409 key_in_flight false"], "%v", counts)
		require.Equal(t, 64, counts["201  true"]+counts["409 key_in_flight false"]+counts["201 true true"], "%v", counts)
		rec := serve(handlers[0], withToken(token, key, "hello"))
		require.Equal(t, "true", rec.Header().Get("Idempotency-Replayed"))
		want, effects := 1, 0
		if inHandler {
			want, effects = 2, 1
		}
		require.Equal(t, fmt.Sprint("left ", 5-want), rec.Body.String())
		uses, entries := used(t, nodes[0], token)
		require.Equal(t, want, uses)
		require.Equal(t, want, entries)
		require.Len(t, s.effects(t), effects)
	}
}

// P3 Counted: sixty-four handlers that spend themselves, on two servers, with a token of five uses: five effects, although every
// third transaction is rolled back.
func TestP3SpendInHandler(t *testing.T) {
	onStores(t, testP3SpendInHandler)
	inTransactions(t, testP3SpendInHandler)
}

func testP3SpendInHandler(t *testing.T, s *shared) {
	nodes, token := s.servers(t, 5)
	counts := at64(func(i int) string {
		h := nodes[i%2].Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, _ := authz.FromContext(r.Context())
			if err := s.do(r.Context(), i%2, d, fmt.Sprint("effect ", i), i%3 == 0); err != nil {
				authz.Refuse(w, r, err)
				return
			}
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprint(w, d.Left)
		}))
		rec := serve(h, withToken(token, "", ""))
		if rec.Code == 201 {
			return "201 " + rec.Body.String()
		}
		return fmt.Sprint(rec.Code, " ", reasonOf(t, rec))
	})
	for left := range 5 {
		require.Equal(t, 1, counts[fmt.Sprint("201 ", left)], "%v", counts)
	}
	require.Equal(t, 59, counts["401 used_up"]+counts["503 "], "%v", counts)
	if s.dbs[0] == nil {
		require.Zero(t, counts["503 "])
	}
	require.Len(t, s.effects(t), 5)
	uses, entries := used(t, nodes[1], token)
	require.Equal(t, -1, uses)
	require.Equal(t, 5, entries)
}

// A transaction that is rolled back leaves nothing: the same Delegation is spent by the next try, the same key runs again.
func TestSpendRolledBack(t *testing.T) {
	inTransactions(t, func(t *testing.T, s *shared) {
		nodes, token := s.servers(t, 5)
		tries, fails := 0, 2
		h := nodes[0].Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, _ := authz.FromContext(r.Context())
			err := errRolledBack
			for range 3 {
				if errors.Is(err, errRolledBack) {
					tries++
					err = s.do(r.Context(), 0, d, "once", tries <= fails)
				}
			}
			if err != nil {
				authz.Refuse(w, r, err)
				return
			}
			again := s.do(r.Context(), 0, d, "twice", false)
			require.ErrorIs(t, again, grant.ErrInvalid, "committed is committed")
			require.True(t, d.Spent())
			w.WriteHeader(http.StatusCreated)
		}))
		require.Equal(t, 201, serve(h, withToken(token, "", "")).Code)
		require.Equal(t, 3, tries)
		require.Equal(t, []string{"once"}, s.effects(t))
		uses, entries := used(t, nodes[1], token)
		require.Equal(t, []int{1, 1}, []int{uses, entries})

		// With a key: rolled back and answered, whatever the answer, it may be tried again.
		effect, rollBack, status := "keyed", true, 500
		h = nodes[0].Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, _ := authz.FromContext(r.Context())
			if err := s.do(r.Context(), 0, d, effect, rollBack); err != nil && !errors.Is(err, errRolledBack) {
				authz.Refuse(w, r, err)
				return
			}
			w.WriteHeader(status)
			if r.Header.Get("X-Flush") != "" {
				w.(http.Flusher).Flush()
			}
		}))
		for _, status = range []int{500, 404, 201} { // the last one is not true, and found out
			rec := serve(h, withToken(token, "k", ""))
			want := status
			if want == 201 {
				want = 500
				require.JSONEq(t, serverError, rec.Body.String())
			}
			require.Equal(t, want, rec.Code)
			require.Empty(t, rec.Header().Get("Idempotency-Replayed"))
			require.Equal(t, status == 201, strings.Contains(s.log.String(), "not in the store"), s.log.String())
		}
		// What is on its way already cannot be taken back; the log has it.
		r := withToken(token, "k", "")
		r.Header.Set("X-Flush", "1")
		require.Equal(t, 201, serve(h, r).Code)
		require.Equal(t, 2, strings.Count(s.log.String(), "not in the store"))
		require.Len(t, s.effects(t), 1)
		rollBack = false
		require.Equal(t, 201, serve(h, withToken(token, "k", "")).Code)
		require.Equal(t, "true", serve(h, withToken(token, "k", "")).Header().Get("Idempotency-Replayed"))
		require.Len(t, s.effects(t), 2)
		uses, entries = used(t, nodes[1], token)
		require.Equal(t, []int{2, 2}, []int{uses, entries})
	})
}
