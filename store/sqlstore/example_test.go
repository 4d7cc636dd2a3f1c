package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// A database for examples. Yours comes with your own driver and settings.
func exampleDB() (db *sql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "behest")
	if err != nil {
		panic(err)
	}
	db, err = sql.Open("sqlite", filepath.Join(dir, "social.db")+"?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate")
	if err != nil {
		panic(err)
	}
	return db, func() { db.Close(); os.RemoveAll(dir) }
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func Example() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil { // at every start, on every node
		panic(err)
	}
	st := must(sqlstore.New(db, sqlstore.SQLite))
	must(st.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "token", ID: "a1.t7", Owner: "zhang-san", App: "bookbot", Left: 2, NotAfter: now.Add(10 * time.Minute)})}))
	for range 3 {
		out := must(st.Apply(ctx, now, []store.Op{store.Spend("token", "a1.t7", 1, nil)}))
		fmt.Println(out.Reason, out.Left)
	}
	var app, until string
	row := db.QueryRow("SELECT app, not_after FROM behest_records WHERE owner = 'zhang-san'")
	fmt.Println(row.Scan(&app, &until), app, until)
	// Output:
	// applied 1
	// applied 0
	// exhausted 0
	// <nil> bookbot 2031-05-06 07:18:09.000000
}

// exampleServer may be used by BookBot, twice for each mention.
func exampleServer(st store.Store, now time.Time) *authz.Server {
	return must(authz.New(authz.Config{
		Issuer: "https://social.example",
		Store:  st,
		Key:    grant.NewSecret(strings.Repeat("k", 32)), // 32 bytes from crypto/rand, in earnest
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps:   []authz.App{{ID: "bookbot", Name: "BookBot", Secret: grant.NewSecret("a secret that the server made"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{
			App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: 2,
		}},
		Now: func() time.Time { return now },
	}))
}

// A message and the grant that it causes are committed together, or neither is.
func ExampleTx() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	must(db.Exec("CREATE TABLE messages (id text PRIMARY KEY, body text)"))
	az := exampleServer(must(sqlstore.New(db, sqlstore.SQLite)), now)

	post := func(id, body string, crash bool) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "INSERT INTO messages VALUES (?, ?)", id, body); err != nil {
			return err
		}
		_, err = az.In(sqlstore.Tx(tx, sqlstore.SQLite)).Emit(ctx, grant.Event{ID: id, Operation: grant.Mention,
			Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "bookbot", Text: body})
		if err != nil {
			return err
		}
		if crash {
			return fmt.Errorf("the process dies here")
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		az.Wake() // deliver at once
		return nil
	}
	fmt.Println(post("m1", "@bookbot which one?", false))
	fmt.Println(post("m2", "@bookbot and now?", true))

	var messages int
	if err := db.QueryRow("SELECT count(*) FROM messages").Scan(&messages); err != nil {
		panic(err)
	}
	for _, g := range must(az.Engine().Grants(ctx, "zhang-san", "", true)) {
		fmt.Println("of", messages, "message:", g.State, g.Scope(), "×", g.Uses, "because of", g.Event.ID)
	}
	// Output:
	// <nil>
	// the process dies here
	// of 1 message: issued group:42/message.write × 2 because of m1
}

// A use and its effect are committed together: the effect happens exactly as often as a use is spent.
func ExampleTx_use() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	must(db.Exec("CREATE TABLE messages (account text, app text, body text)"))
	az := exampleServer(must(sqlstore.New(db, sqlstore.SQLite)), now)
	group := scope.MustDomain("group:42")
	issued := must(az.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bookbot"}))
	_, token, err := az.Engine().Redeem(ctx, "bookbot", issued[0].Code)
	if err != nil {
		panic(err)
	}

	answer := func(body string, crash bool) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		d, err := az.In(sqlstore.Tx(tx, sqlstore.SQLite)).Use(ctx, authz.Call{Token: token.Reveal(), Want: scope.MustParse("group:42/message.write")})
		if err != nil {
			return err // nothing was spent, and nothing is said
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO messages VALUES (?, ?, ?)", d.Account, d.App, body); err != nil {
			return err
		}
		if crash {
			return fmt.Errorf("the process dies here")
		}
		return tx.Commit()
	}
	fmt.Println(answer("the blue one", false))
	fmt.Println(answer("no, wait", true))
	fmt.Println(answer("the red one", false))
	fmt.Println(answer("or the green one", false))
	rows := must(db.Query("SELECT account || ' via ' || app || ': ' || body FROM messages"))
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			panic(err)
		}
		fmt.Println(line)
	}
	// Output:
	// <nil>
	// the process dies here
	// <nil>
	// grant: used up: 0 left, message.write costs 1
	// zhang-san via bookbot: the blue one
	// zhang-san via bookbot: the red one
}

// With pgx, nodes hear of each other's grants: give the Listener to package authz as Config.Waker. (Compiled and not
// run, since it needs a server.)
func ExampleNewListener() {
	db, err := sql.Open("pgx", "postgres://social@db.internal/social")
	if err != nil {
		panic(err)
	}
	defer db.Close()
	waker := sqlstore.NewListener(db, func(ctx context.Context, conn any) (string, error) {
		n, err := conn.(*stdlib.Conn).Conn().WaitForNotification(ctx)
		if err != nil {
			return "", err
		}
		return n.Payload, nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = waker.Listen(ctx, func(app string) { fmt.Printf("look for what is due for %q\n", app) })
	fmt.Println(err) // why it does not listen any more
}
