package parentwatch

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test's own program plays the parent and the child.
const role = "KEELSON_PARENTWATCH_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "parent": // starts a child, and waits to be killed
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), role+"=child")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			panic(err)
		}
		_ = child.Wait()
	case "child": // says which it is, and holds standard output open until its parent is gone
		gone := make(chan struct{})
		Start(func() { close(gone) })
		_, _ = os.Stdout.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		<-gone
	default:
		os.Exit(m.Run())
	}
}

func TestThreat25_AProcessLearnsThatItsParentWasKilled(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), role+"=parent")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(child, syscall.SIGKILL) }) // when the test fails
	if err := syscall.Kill(parent.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, in); ended <- err }()
	select {
	case <-ended: // nobody holds standard output any more
	case <-time.After(30 * time.Second):
		t.Error("the child lives on without its parent")
	}
	_ = parent.Wait() // it was killed
}

func TestNothingIsToldWhileTheParentLives(t *testing.T) {
	asked := make(chan struct{}, 3)
	watch(func() int {
		select {
		case asked <- struct{}{}:
		default:
		}
		return 7
	}, time.Millisecond, func() { t.Error("gone") })
	for range 3 {
		<-asked
	}
}
