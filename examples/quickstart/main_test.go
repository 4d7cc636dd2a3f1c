package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const story = `BookBot acts without a grant: invalid_token
Zhang San writes in group 42: @bookbot reserve Dune for me
BookBot hears of it: "@bookbot reserve Dune for me", may group:42/message.write
BookBot redeems the code, for two uses: done
It redeems the code again: invalid_grant
  group:42 | zhang-san, via bookbot: Dune is reserved.
It writes in group 42: done
It writes in group 7: wrong_domain
  group:42 | zhang-san, via bookbot: It waits at the desk.
It writes in group 42: done
It writes in group 42: used_up
`

func TestStory(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var out bytes.Buffer
	require.NoError(t, run(ctx, &out))
	require.Equal(t, strings.Split(story, "\n"), strings.Split(out.String(), "\n"))
}

// What does not come out as told is an error.
func TestStoryThatFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, &bytes.Buffer{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOneShortFile(t *testing.T) {
	text, err := os.ReadFile("main.go")
	require.NoError(t, err)
	require.Less(t, bytes.Count(text, []byte("\n")), 120)
}
