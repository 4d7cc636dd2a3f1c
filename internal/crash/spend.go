package crash

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// now is the time at all jobs: nothing expires.
var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

// uses is more than anybody spends.
const uses = int64(1) << 40

// Spending is a whole use in one Apply: a check, a spend of one and the same token, a ledger entry. It says "spent ID", where ID is that of the entry.
func Spending() Job {
	return Job{name: "spending", prepare: prepareSpending, begin: spend, audit: auditSpending}
}

func prepareSpending(ctx context.Context, st store.Store) error {
	out, err := st.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "token", ID: "a.t", Left: uses})})
	if err == nil && !out.Applied() {
		err = fmt.Errorf("the token is not written: %v", out.Reason)
	}
	return err
}

func spend(st store.Store) (Work, error) {
	return func(ctx context.Context, id string, say func(string)) error {
		id = "a." + id
		out, err := st.Apply(ctx, now, []store.Op{
			store.Check("revocation", "a.all", 0),
			store.Spend("token", "a.t", 1, nil),
			store.Put(store.Record{Kind: "ledger", ID: id, Owner: "li", Data: []byte(id)}),
		})
		switch {
		case err != nil:
			return err
		case !out.Applied():
			return fmt.Errorf("%s is refused: %+v", id, out)
		}
		say("spent " + id)
		return nil
	}, nil
}

func auditSpending(ctx context.Context, st store.Store, said []string, unanswered int) (done []string, err error) {
	written := make(map[string]bool)
	for q := (store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage}); ; {
		page, err := st.List(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if string(r.Data) != r.ID || written[r.ID] {
				return nil, fmt.Errorf("the entry %s is there twice, or half: %q", r.ID, r.Data)
			}
			written[r.ID] = true
			done = append(done, r.ID)
		}
		if len(page) == 0 {
			break
		}
		q.After = page[len(page)-1].ID
	}
	for _, line := range said {
		id, ok := strings.CutPrefix(line, "spent ")
		if !ok {
			return nil, fmt.Errorf("%q was said", line)
		}
		if !written[id] {
			return nil, fmt.Errorf("%s was acknowledged and is lost", id)
		}
	}
	got, err := st.Get(ctx, "token", "a.t")
	switch {
	case err != nil:
		return nil, err
	case len(got) != 1:
		return nil, fmt.Errorf("the token was acknowledged and is lost")
	case uses-got[0].Left != int64(len(done)):
		return nil, fmt.Errorf("%d uses are spent, and %d are written down", uses-got[0].Left, len(done))
	case len(done)-len(said) > unanswered:
		return nil, fmt.Errorf("%d uses are written down, %d were acknowledged, and at most %d had no answer", len(done), len(said), unanswered)
	}
	return done, nil
}
