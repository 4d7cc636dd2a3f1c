package guard_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/behest-go/behest/internal/guard"
)

// The same server, before and after the operator allowed it by name.
func Example() {
	srv := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:22/", http.StatusFound))
	defer srv.Close()
	ctx := context.Background()

	strict, err := guard.New(guard.Options{})
	fmt.Println(err)
	defer strict.Close()
	fmt.Println(strict.CheckURL("https://bookbot.example/hook"))
	fmt.Println(strict.CheckURL("https://169.254.169.254/latest/meta-data"))
	_, err = strict.Post(ctx, srv.URL, nil, nil)
	fmt.Println(errors.Is(err, guard.ErrURL))

	lenient, err := guard.New(guard.Options{Allow: []string{"127.0.0.1"}})
	fmt.Println(err)
	defer lenient.Close()
	answer, err := lenient.Post(ctx, srv.URL, http.Header{"Webhook-Id": {"msg_1"}}, []byte(`{}`))
	fmt.Println(answer.Status, answer.OK(), err) // not followed
	// Output:
	// <nil>
	// <nil>
	// guard: address refused: link-local, cloud metadata (RFC 3927)
	// true
	// <nil>
	// 302 false <nil>
}
