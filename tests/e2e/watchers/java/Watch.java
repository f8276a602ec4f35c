import static java.nio.file.StandardWatchEventKinds.ENTRY_CREATE;
import static java.nio.file.StandardWatchEventKinds.ENTRY_MODIFY;

import java.io.IOException;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.WatchEvent;
import java.nio.file.WatchKey;
import java.time.Instant;

/**
 * Watches as programs in Java do, with WatchService, which watches directories only. usage: Watch MODE DIR FILE
 *
 * <p>Prints `ready`, then per callback: nanoseconds of the wall clock, event, first word of the content.
 */
public final class Watch {
    public static void main(String[] args) throws Exception {
        Path dir = Path.of(args[1]);
        Path file = dir.resolve(args[2]);
        // dir: acts on ..data appearing; dir-name: on a change of the file's own name
        WatchEvent.Kind<Path> kind = args[0].equals("dir") ? ENTRY_CREATE : ENTRY_MODIFY;
        String name = args[0].equals("dir") ? "..data" : args[2];
        try (var service = FileSystems.getDefault().newWatchService()) {
            dir.register(service, kind);
            System.out.println("ready");
            while (true) {
                WatchKey key = service.take();
                for (WatchEvent<?> event : key.pollEvents()) {
                    if (event.kind() == kind && event.context().toString().equals(name)) {
                        report(event.kind().name(), file);
                    }
                }
                key.reset();
            }
        }
    }

    private static void report(String event, Path file) {
        Instant now = Instant.now();
        String content;
        try {
            content = Files.readString(file).lines().findFirst().orElse("empty");
        } catch (IOException e) {
            content = "unreadable";
        }
        System.out.printf("%d%09d %s %s%n", now.getEpochSecond(), now.getNano(), event, content);
        System.out.flush();
    }

    private Watch() {}
}
