package sqlite_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

// What was spent stays spent when the server starts again.
func Example() {
	dir, err := os.MkdirTemp("", "behest")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	for range 3 { // three starts
		st, err := sqlite.Open(filepath.Join(dir, "behest.db"))
		if err != nil {
			panic(err)
		}
		out, err := st.Apply(ctx, now, []store.Op{store.Spend("token", "a1.t7", 1, &store.Record{Owner: "zhang-san", App: "bookbot", Left: 2})})
		fmt.Println(out.Reason, out.Left, err, st.Close())
	}
	// Output:
	// applied 1 <nil> <nil>
	// applied 0 <nil> <nil>
	// exhausted 0 <nil> <nil>
}
