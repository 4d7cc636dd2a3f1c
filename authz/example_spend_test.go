package authz_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // or any other driver

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// The use and the message are committed together, or neither is: here, the first try fails between the two.
func ExampleSpendInHandler() {
	dir, err := os.MkdirTemp("", "behest")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", filepath.Join(dir, "social.db")+"?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate")
	if err != nil {
		panic(err)
	}
	defer db.Close()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil { // at every start
		panic(err)
	}
	if _, err := db.Exec("CREATE TABLE messages (account, app, text)"); err != nil {
		panic(err)
	}
	st, err := sqlstore.New(db, sqlstore.SQLite)
	if err != nil {
		panic(err)
	}
	az := exampleServerOn(st)

	fails := true // the first time
	post := func(w http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		text, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
		err := inTx(r.Context(), db, func(tx *sql.Tx) error {
			if err := d.Spend(r.Context(), sqlstore.Tx(tx, sqlstore.SQLite)); err != nil {
				return err
			}
			if fails {
				fails = false
				return fmt.Errorf("the disk is full")
			}
			_, err := tx.ExecContext(r.Context(), "INSERT INTO messages VALUES (?, ?, ?)", d.Account, d.App, string(text))
			return err
		})
		if err != nil {
			authz.Refuse(w, r, err)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write", authz.SpendInHandler)(http.HandlerFunc(post)))

	token := exampleToken(az) // for one use
	for range 3 {
		req := httptest.NewRequest("POST", "/groups/42/messages", strings.NewReader("Dune is reserved."))
		req.Header.Set("Authorization", "Bearer "+token)
		res := httptest.NewRecorder()
		mux.ServeHTTP(res, req)
		var messages int
		if err := db.QueryRow("SELECT count(*) FROM messages").Scan(&messages); err != nil {
			panic(err)
		}
		fmt.Println(res.Code, messages)
	}
	// Output:
	// 503 0
	// 201 1
	// 401 1
}

// inTx runs f in a transaction, which is rolled back if f fails.
func inTx(ctx context.Context, db *sql.DB, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// exampleServerOn is the server of the examples, on a store of its own.
func exampleServerOn(st store.Store) *authz.Server {
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example",
		Store:  st,
		Key:    grant.NewSecret(strings.Repeat("k", 32)), // 32 bytes from crypto/rand, in earnest
		Permit: mayDo,
		Apps:   []authz.App{{ID: "bookbot", Name: "BookBot", Secret: secret, Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{
			{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 1},
		},
	})
	if err != nil {
		panic(err)
	}
	return az
}

// With PostgreSQL, a transaction that meets another may be refused by the database, and is tried again: all tries of
// one Delegation are one use. (Compiled and not run, since it needs a server.)
func ExampleSpendInHandler_postgreSQL() {
	db, err := sql.Open("pgx", "postgres://social@db.internal/social")
	if err != nil {
		panic(err)
	}
	st, err := sqlstore.New(db, sqlstore.PostgreSQL)
	if err != nil {
		panic(err)
	}
	az := exampleServerOn(st)
	retryable := func(err error) bool { // deadlock_detected, serialization_failure
		var state interface{ SQLState() string }
		return errors.As(err, &state) && (state.SQLState() == "40001" || state.SQLState() == "40P01")
	}
	post := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		text, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
		write := func(tx *sql.Tx) error {
			if err := d.Spend(r.Context(), sqlstore.Tx(tx, sqlstore.PostgreSQL)); err != nil {
				return err
			}
			_, err := tx.ExecContext(r.Context(), "INSERT INTO messages (account, app, text) VALUES ($1, $2, $3)", d.Account, d.App, string(text))
			return err
		}
		err := inTx(r.Context(), db, write)
		for tries := 1; tries < 3 && retryable(err); tries++ {
			err = inTx(r.Context(), db, write)
		}
		if err != nil {
			authz.Refuse(w, r, err)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	mux := http.NewServeMux()
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write", authz.SpendInHandler)(post))
}

// For gRPC, a queue, a router of one's own: verified at first, and spent when there is a transaction to spend it in.
func ExampleServer_Prepare() {
	az := exampleServer()
	d, err := az.Prepare(ctx, authz.Call{Token: exampleToken(az), Want: scope.MustParse("group:42/message.write")})
	if err != nil {
		fmt.Println("refused:", grant.Reason(err))
		return
	}
	fmt.Println(d.Account, d.Domain, "spent:", d.Spent())
	fmt.Println(d.Spend(ctx, nil)) // or in sqlstore.Tx(tx, …)
	fmt.Println("spent:", d.Spent(), "left:", d.Left)
	// Output:
	// zhang-san group:42 spent: false
	// <nil>
	// spent: true left: 0
}

// A client that does not know whether its request was carried out makes it again, with the same key.
func ExampleServer_Require_idempotencyKey() {
	az := exampleServer()
	mux := http.NewServeMux()
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(postMessage))
	token := exampleToken(az) // for one use
	for _, text := range []string{"Dune is reserved.", "Dune is reserved.", "Dune is not reserved."} {
		req := httptest.NewRequest("POST", "/groups/42/messages", strings.NewReader(text))
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Idempotency-Key", `"8e03978e-40d5-43dd-bc93-6894a57f9324"`)
		res := httptest.NewRecorder()
		mux.ServeHTTP(res, req)
		fmt.Println(res.Code, "replayed:", res.Header().Get("Idempotency-Replayed") == "true")
	}
	// Output:
	// zhang-san, via bookbot, in group:42: Dune is reserved.
	// 201 replayed: false
	// 201 replayed: true
	// 422 replayed: false
}
