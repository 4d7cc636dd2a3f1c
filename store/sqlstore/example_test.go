package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite"

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

// A message and the grant that it causes are committed together, or neither is.
func ExampleTx() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	must(db.Exec("CREATE TABLE messages (id text PRIMARY KEY, body text)"))
	post := func(id, body string, crash bool) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "INSERT INTO messages VALUES (?, ?)", id, body); err != nil {
			return err
		}
		out, err := sqlstore.Tx(tx, sqlstore.SQLite).Apply(ctx, now, []store.Op{
			store.Put(store.Record{Kind: "grant", ID: "a1." + id, Owner: "zhang-san", App: "bookbot", Left: 3, NotAfter: now.Add(10 * time.Minute)}),
		})
		if err != nil || !out.Applied() {
			return fmt.Errorf("grant: %v, %w", out.Reason, err)
		}
		if crash {
			return fmt.Errorf("the process dies here")
		}
		return tx.Commit()
	}
	fmt.Println(post("m1", "@bookbot which one?", false))
	fmt.Println(post("m2", "@bookbot and now?", true))

	st := must(sqlstore.New(db, sqlstore.SQLite))
	var messages int
	if err := db.QueryRow("SELECT count(*) FROM messages").Scan(&messages); err != nil {
		panic(err)
	}
	fmt.Println(messages, "message,", len(must(st.List(ctx, store.Query{Kind: "grant", Owner: "zhang-san"}))), "grant")
	// Output:
	// <nil>
	// the process dies here
	// 1 message, 1 grant
}

// A use and its effect are committed together: the effect happens exactly as often as there was to spend.
func ExampleTx_spend() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	must(db.Exec("CREATE TABLE messages (body text)"))
	st := must(sqlstore.New(db, sqlstore.SQLite))
	must(st.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "token", ID: "a1.t7", Left: 1})}))
	answer := func(body string) (store.Outcome, error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return store.Outcome{}, err
		}
		defer tx.Rollback()
		out, err := sqlstore.Tx(tx, sqlstore.SQLite).Apply(ctx, now, []store.Op{store.Spend("token", "a1.t7", 1, nil)})
		if err != nil || !out.Applied() {
			return out, err // nothing was spent, and nothing is said
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO messages VALUES (?)", body); err != nil {
			return out, err
		}
		return out, tx.Commit()
	}
	for _, body := range []string{"the blue one", "the red one"} {
		out, err := answer(body)
		fmt.Println(out.Reason, err)
	}
	// Output:
	// applied <nil>
	// exhausted <nil>
}
