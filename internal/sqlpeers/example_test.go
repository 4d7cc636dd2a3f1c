package sqlpeers

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jmoiron/sqlx"
	"xorm.io/xorm"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store/sqlstore"
)

// exampleDSN is a migrated database in a file, with a table of messages, and an engine over it.
func exampleDSN() (dsn string, e *grant.Engine, remove func()) {
	dir := must(os.MkdirTemp("", "behest"))
	dsn = sqliteName(filepath.Join(dir, "social.db"))
	db := must(sql.Open("sqlite", dsn))
	if err := sqlstore.Migrate(context.Background(), db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	must(db.Exec("CREATE TABLE messages (text text)"))
	return dsn, must(newEngine(must(sqlstore.New(db, sqlstore.SQLite)))), func() { db.Close(); os.RemoveAll(dir) }
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A *sqlx.Tx is an Execer as it is.
func Example_sqlx() {
	dsn, engine, remove := exampleDSN()
	defer remove()
	db := must(sqlx.Open("sqlite", dsn))
	defer db.Close()
	tx := must(db.Beginx())
	defer tx.Rollback()
	must(tx.NamedExec("INSERT INTO messages (text) VALUES (:text)", Messages{"@bookbot which one?"}))
	issued := must(engine.In(sqlstore.Tx(tx, sqlstore.SQLite)).Emit(context.Background(), mention("m1")))
	fmt.Println(issued[0].State, tx.Commit())
	// Output: issued <nil>
}

// The transaction of an xorm session is session.Tx(), and the *sql.Tx in it is an Execer.
func Example_xorm() {
	dsn, engine, remove := exampleDSN()
	defer remove()
	db := must(xorm.NewEngine("sqlite", dsn))
	defer db.Close()
	session := db.NewSession()
	defer session.Close()
	if err := session.Begin(); err != nil {
		panic(err)
	}
	must(session.Insert(&Messages{"@bookbot which one?"}))
	issued := must(engine.In(sqlstore.Tx(session.Tx().Tx, sqlstore.SQLite)).Emit(context.Background(), mention("m1")))
	fmt.Println(issued[0].State, session.Commit())
	// Output: issued <nil>
}
