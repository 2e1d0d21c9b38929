<?php
// A vendor's backend behind spigate, for every form of `send`. PHP 8, no packages.
//
// Run: php -S 127.0.0.1:9000 backend.php
//
// PHP keeps nothing between two requests, so the state lies in a file (STATE names another one);
// a real backend has a database. The lock on it makes two copies of an order wait for each other.

$file = fopen(getenv('STATE') ?: sys_get_temp_dir() . '/spigate-example-backend.json', 'c+');
flock($file, LOCK_EX);
$state = json_decode(stream_get_contents($file), true) ?: ['instances' => [], 'answered' => []];

function create(string $action, array $order, array &$state): array
{
    $id = 'ins-' . bin2hex(random_bytes(16));
    $state['instances'][$id] = ['order' => $order, 'state' => 'running'];
    [$user, $password, $url] = ['admin', bin2hex(random_bytes(9)), 'https://crm.example.com'];
    if ($action === 'CreateInstance') {
        $info = ['frontEndUrl' => $url, 'adminUrl' => $url, 'username' => $user, 'password' => $password];
        return ['success' => true, 'instanceId' => $id, 'instanceInfo' => $info];
    }
    $frontEnd = ['url' => $url, 'username' => $user, 'password' => $password];
    return ['success' => true, 'instanceId' => $id, 'appInfo' => ['frontEnd' => $frontEnd]];
}

// What the platform is told.
function answer(string $action, array $order, array &$state): array
{
    if ($action === 'TestConnection') {
        return ['success' => true];
    }
    if (str_starts_with($action, 'Create')) {
        return create($action, $order, $state);
    }
    $id = $order['instance_id'];
    $known = isset($state['instances'][$id]);
    // Expire and delete can come anew under a known Idempotency-Key (journal off, or lost): never skip
    // them because the key is known, make them harmless to repeat.
    if (str_starts_with($action, 'Expire')) {
        if ($known) {
            $state['instances'][$id]['state'] = 'expired';
        }
        return ['success' => true];
    }
    if (str_starts_with($action, 'Delete')) {
        unset($state['instances'][$id]);
        return ['success' => true];
    }
    if (!$known) {
        return ['success' => false, 'message' => 'no such instance'];
    }
    if (preg_match('/^(Renew|Upgrade)/', $action)) {
        $state['instances'][$id] = ['order' => $order, 'state' => 'running'];
        return ['success' => true];
    }
    return ['success' => false, 'message' => 'unknown action'];
}

// The order. A real backend has only the form that its configuration says.
$order = $_SERVER['REQUEST_METHOD'] === 'POST' ? json_decode(file_get_contents('php://input'), true) : $_GET;
foreach ($_SERVER as $name => $value) {
    if (str_starts_with($name, 'HTTP_X_SPI_PARAM_')) { // send = "headers"
        $order[strtolower(substr($name, 17))] = rawurldecode($value);
    }
}
$action = $_SERVER['HTTP_X_SPI_ACTION'];
$key = $_SERVER['HTTP_IDEMPOTENCY_KEY'];
$reply = $state['answered'][$key] ?? null;
if ($reply === null) {
    $reply = answer($action, $order, $state);
    if ($reply['success'] && preg_match('/^(Create|Renew|Upgrade)/', $action)) {
        $state['answered'][$key] = $reply;
    }
    ftruncate($file, 0);
    rewind($file);
    fwrite($file, json_encode($state));
}
fclose($file);
// Without this line PHP says text/html, which is no reply.
header('Content-Type: application/json');
echo json_encode($reply, JSON_UNESCAPED_UNICODE);
