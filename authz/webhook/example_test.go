package webhook_test

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/behest-go/behest/authz/webhook"
)

// The sender signs, the receiver verifies, both with the same secret.
func Example() {
	key, err := webhook.ParseKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		fmt.Println(err)
		return
	}
	body := []byte(`{"test": 2432232314}`)
	now := time.Unix(1614265330, 0)

	header := http.Header{}
	if err := webhook.Sign(header, "msg_p5jXN8AQM9LWM0D4loKWxJek", now, body, key); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(header.Get("webhook-signature"))

	id, err := webhook.Verify(header, body, now.Add(time.Minute), key)
	fmt.Println(id, err)
	_, err = webhook.Verify(header, []byte(`{"test": 1}`), now, key)
	fmt.Println(err)
	_, err = webhook.Verify(header, body, now.Add(time.Hour), key)
	fmt.Println(errors.Is(err, webhook.ErrTimestamp))
	// Output:
	// v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=
	// msg_p5jXN8AQM9LWM0D4loKWxJek <nil>
	// webhook: refused: no signature by a known key
	// true
}

// With Ed25519 the receiver cannot sign: it has the public half alone.
func ExampleKey_Public() {
	private := webhook.NewSigningKey()
	public, err := webhook.ParseKey(private.Public().Reveal()) // what the app is given
	if err != nil {
		fmt.Println(err)
		return
	}
	header := http.Header{}
	now := time.Unix(1_800_000_000, 0)
	if err := webhook.Sign(header, "msg_1", now, []byte("hello"), private); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(webhook.Verify(header, []byte("hello"), now, public))
	fmt.Println(errors.Is(webhook.Sign(header, "msg_2", now, nil, public), webhook.ErrKey))
	// Output:
	// msg_1 <nil>
	// true
}

// While a secret changes, the receiver takes both.
func ExampleVerify_rotation() {
	before, after := webhook.NewSecret(), webhook.NewSecret()
	now := time.Unix(1_800_000_000, 0)
	for _, signer := range []webhook.Key{before, after} {
		header := http.Header{}
		if err := webhook.Sign(header, "msg_1", now, nil, signer); err != nil {
			fmt.Println(err)
		}
		fmt.Println(webhook.Verify(header, nil, now, before, after))
	}
	// Output:
	// msg_1 <nil>
	// msg_1 <nil>
}

// A key does not show itself, in whatever it lies.
func ExampleKey_String() {
	key := webhook.NewSecret()
	config := struct {
		Name string
		Key  webhook.Key
	}{"bookbot", key}
	fmt.Printf("%v\n%+v\n%#v\n", key, config, key)
	// Output:
	// whsec_[redacted]
	// {Name:bookbot Key:whsec_[redacted]}
	// whsec_[redacted]
}
