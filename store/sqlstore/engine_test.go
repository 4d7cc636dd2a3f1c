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
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

var (
	group = scope.MustDomain("group:42")
	write = scope.MustParse("group:42/message.write")
)

// newEngine is one node. All nodes of one store have the same key.
func newEngine(st store.Store, permit func(context.Context, grant.Access) error) (*grant.Engine, error) {
	if permit == nil {
		permit = func(context.Context, grant.Access) error { return nil }
	}
	on := grant.Trigger{ID: "mention", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}, Uses: 100_000}
	twice := on
	twice.ID = "twice"
	return grant.NewEngine(grant.Config{
		Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: permit, Now: func() time.Time { return now },
		Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write", "member.read"}}},
		Triggers: []grant.Trigger{on, twice},
	})
}

func mention(id string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: group}
}

// newToken issues and redeems.
func newToken(t testing.TB, e *grant.Engine, id string) string {
	t.Helper()
	issued, err := e.Emit(t.Context(), mention(id))
	require.NoError(t, err)
	_, token, err := e.Redeem(t.Context(), "bookbot", issued[0].Code)
	require.NoError(t, err)
	return token.Reveal()
}

// recording is an Execer that keeps what it is told.
type recording struct {
	sqlstore.Execer
	log *[]string
}

func (r recording) note() { *r.log = append(*r.log, "statement") }

func (r recording) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	r.note()
	return r.Execer.ExecContext(ctx, query, args...)
}

func (r recording) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	r.note()
	return r.Execer.QueryContext(ctx, query, args...)
}

func (r recording) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	r.note()
	return r.Execer.QueryRowContext(ctx, query, args...)
}

// Permit may ask the same database, over another connection: so it is asked before anything in the caller's transaction is locked, at issue (for two triggers
// here, of two actions each) and at use. A no costs no statement.
func TestPermitBeforeTheFirstStatement(t *testing.T) {
	migrated(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB) {
		var log []string
		var answer error
		e, err := newEngine(newStore(t, db, d), func(context.Context, grant.Access) error {
			log = append(log, "permit")
			return answer
		})
		require.NoError(t, err)
		token := newToken(t, e, "m0")
		for _, c := range []struct {
			name string
			asks int
			call func(e *grant.Engine) error
		}{
			{"issue", 4, func(e *grant.Engine) error { _, err := e.Emit(t.Context(), mention("m1")); return err }},
			{"use", 1, func(e *grant.Engine) error { _, err := e.Use(t.Context(), token, write); return err }},
		} {
			for _, answer = range []error{grant.ErrDenied, fmt.Errorf("nobody knows"), nil} {
				tx := begin(t, db)
				log = nil
				err := c.call(e.In(sqlstore.Tx(recording{tx, &log}, d)))
				require.ErrorIs(t, err, answer, c.name)
				asked := strings.Join(log, " ")
				if answer != nil {
					require.NotContains(t, asked, "statement", "%s: %v", c.name, answer)
				} else {
					require.True(t, strings.HasPrefix(asked, strings.Repeat("permit ", c.asks)+"statement"), "%s: %s", c.name, asked)
					require.Equal(t, c.asks, strings.Count(asked, "permit"), "%s: %s", c.name, asked)
				}
				require.NoError(t, tx.Commit())
			}
		}
	})
}

// A conflict and every kind of refusal leave the caller's transaction as it was: what it did before and does after is committed.
func TestEngineRefusalsDoNotPoison(t *testing.T) {
	withMessages(t, func(t *testing.T, d sqlstore.Dialect, db *sql.DB, s *sqlstore.Store) {
		e, err := newEngine(s, nil)
		require.NoError(t, err)
		token := newToken(t, e, "m0")
		first, err := e.Emit(t.Context(), mention("m1"))
		require.NoError(t, err)
		gone := newToken(t, e, "m2")
		require.NoError(t, e.RevokeApp(t.Context(), "zhang-san", "bookbot", scope.MustDomain("group:42")))
		token2 := newToken(t, e, "m3")

		tx := begin(t, db)
		in := e.In(sqlstore.Tx(tx, d))
		message(t, tx, "before")
		again, err := in.Emit(t.Context(), mention("m1")) // the same event: the store says Conflict, the engine gives the same grants
		require.NoError(t, err)
		require.Equal(t, first[0].ID, again[0].ID)
		other := mention("m1")
		other.Text = "something else"
		_, err = in.Emit(t.Context(), other)
		require.ErrorIs(t, err, grant.ErrInvalid)
		for _, revoked := range []string{token, gone} {
			_, err = in.Use(t.Context(), revoked, write)
			require.ErrorIs(t, err, grant.ErrRevoked)
		}
		message(t, tx, "after")
		d1, err := in.Use(t.Context(), token2, write)
		require.NoError(t, err)
		require.NoError(t, tx.Commit())
		require.Equal(t, 2, messages(t, db))
		d2, err := e.Use(t.Context(), token2, write)
		require.NoError(t, err)
		require.Equal(t, d1.Left-1, d2.Left)
	})
}

// A process that uses a token and does what the use is for in one transaction is killed, at each place between the two and the commit, and at moments that
// nobody knows. Nothing is done without a use, and no use is spent for nothing. The token is one and the same all the time, so its uses are numbered.
func TestUseAndEffect(t *testing.T) {
	if where := os.Getenv("BEHEST_EFFECT"); where != "" {
		useUntilKilled(where)
		return
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := postgresDSN(t)
		schema := newSchema(t, dsn)
		db := openPostgres(t, dsn, schema)
		require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
		mark := "?"
		switch {
		case !strings.Contains(dsn, "://"):
			mark = " "
		case strings.Contains(dsn, "?"):
			mark = "&"
		}
		sep := "&"
		if mark == " " {
			sep = " "
		}
		usesAndEffects(t, "pgx "+dsn+mark+"search_path="+schema+sep+"application_name="+schema, sqlstore.PostgreSQL, db, func() {
			active(t, db, schema, "", 0) // the server still carries out what a killed client has sent
		})
	})
	t.Run("SQLite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "db")
		db := openSQLite(t, path)
		require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.SQLite))
		usesAndEffects(t, "sqlite "+sqliteName(path), sqlstore.SQLite, db, func() {})
	})
}

// The places at which the other process stops and says so, until it is told to go on.
var places = []string{"begun", "one", "both", "committed"}

func usesAndEffects(t *testing.T, where string, d sqlstore.Dialect, db *sql.DB, settled func()) {
	_, err := db.Exec("CREATE TABLE effects (remaining bigint PRIMARY KEY)")
	require.NoError(t, err)
	e, err := newEngine(newStore(t, db, d), nil)
	require.NoError(t, err)
	token := newToken(t, e, "m1")
	self, err := os.Executable()
	require.NoError(t, err)
	rounds := 64
	if testing.Short() {
		rounds = 2 * len(places)
	}
	acknowledged, killed := make(map[string]bool), make(map[string]int)
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestUseAndEffect$")
		cmd.Env = append(os.Environ(), "BEHEST_EFFECT="+where, "BEHEST_TOKEN="+token)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewReader(out)
		// Where it dies: at a place, or on its way from there to the next.
		place, turn, onTheWay := places[round%len(places)], rand.IntN(4), round/len(places)%2 == 1
		for dead := false; !dead; {
			line, err := lines.ReadString('\n')
			require.NoError(t, err)
			at, left, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if at == "committed" {
				acknowledged[left] = true
			}
			if dead = at == place && turn <= 0; at == place {
				turn--
			}
			if !dead || onTheWay {
				_, err = io.WriteString(in, "go on\n")
				require.NoError(t, err)
			}
		}
		for end := time.Now().Add(time.Duration(rand.Int64N(int64(4 * time.Millisecond)))); onTheWay && time.Now().Before(end); { // somewhere in its commit
		}
		require.NoError(t, cmd.Process.Kill())
		rest, err := io.ReadAll(lines)
		require.NoError(t, err)
		for line := range strings.Lines(string(rest)) {
			if left, ok := strings.CutPrefix(line, "committed "); ok && strings.HasSuffix(left, "\n") {
				acknowledged[strings.TrimSuffix(left, "\n")] = true
			}
		}
		require.Error(t, cmd.Wait(), "it was not killed")
		killed[place]++
		settled()
	}
	done := make(map[string]bool)
	rows, err := db.Query("SELECT remaining FROM effects")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var left string
		require.NoError(t, rows.Scan(&left))
		done[left] = true
	}
	require.NoError(t, rows.Err())
	state, err := e.Inspect(t.Context(), grant.NewSecret(token))
	require.NoError(t, err)
	require.Equal(t, state.Uses-state.Left, len(done), "what was spent and what was done")
	for left := state.Left; left < state.Uses; left++ { // each use has its effect, and each effect its use
		require.True(t, done[fmt.Sprint(left)], "the use that left %d has no effect", left)
	}
	for left := range acknowledged {
		require.True(t, done[left], "the use that left %s was acknowledged and is lost", left)
	}
	entries, before := 0, ""
	for {
		page, err := e.Ledger(t.Context(), "zhang-san", before, 1000)
		require.NoError(t, err)
		for _, entry := range page {
			if before = entry.ID; entry.What == "used" {
				entries++
			}
		}
		if len(page) < 1000 {
			break
		}
	}
	require.Equal(t, len(done), entries, "what was done and what the ledger says")
	require.NotEmpty(t, acknowledged)
	t.Logf("%d processes killed (%v), %d uses with their effects, %d of them acknowledged", rounds, killed, len(done), len(acknowledged))
}

// useUntilKilled is the other process. Every other time the effect comes before the use.
func useUntilKilled(where string) {
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	driver, name, _ := strings.Cut(where, " ")
	d := sqlstore.PostgreSQL
	if driver == "sqlite" {
		d = sqlstore.SQLite
	}
	db, err := sql.Open(driver, name)
	check(err)
	st, err := sqlstore.New(db, d)
	check(err)
	e, err := newEngine(st, nil)
	check(err)
	token, err := e.Inspect(context.Background(), grant.NewSecret(os.Getenv("BEHEST_TOKEN")))
	check(err)
	goOn := bufio.NewReader(os.Stdin)
	stop := func(place string, left int) {
		_, err := fmt.Println(place, left)
		check(err)
		_, err = goOn.ReadString('\n')
		check(err)
	}
	for left := token.Left - 1; ; left-- {
		tx, err := db.Begin()
		check(err)
		use := func() {
			d, err := e.In(sqlstore.Tx(tx, d)).Use(context.Background(), os.Getenv("BEHEST_TOKEN"), write)
			check(err)
			if d.Left != left {
				check(fmt.Errorf("the use left %d, want %d", d.Left, left))
			}
		}
		effect := func() {
			_, err := tx.Exec(fmt.Sprintf("INSERT INTO effects (remaining) VALUES (%d)", left))
			check(err)
		}
		steps := []func(){use, effect}
		if left%2 == 0 {
			steps[0], steps[1] = effect, use
		}
		stop("begun", left)
		steps[0]()
		stop("one", left)
		steps[1]()
		stop("both", left)
		check(tx.Commit())
		stop("committed", left)
	}
}
